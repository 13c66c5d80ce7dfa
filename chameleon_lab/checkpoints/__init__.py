"""Models on disk: the lab's own format, and the family's.

- `tensors`, `torch_files`: tensors in files, read and written one at a time
- `opened`: what a checkpoint holds, its transformer read or not yet
- `evidence`: what a folder has of each layout, and what it is instead
- `formats`: `Format` (claim, open, write), and the walk over all of them
- `native`, `meta`, `huggingface`: the lab's own folder, the release's, and the port's in three dialects
- `gguf`, `gguf_file`, `gguf_words`: llama.cpp's file, what its header says, and text tokenizers as it has them
- `vqgans`: image tokenizers that others published alone
- `names`: one table of names, and what is done to tensors between formats
- `text_files`, `companion`: the text tokenizer and the vocabulary in either, and what no foreign file has a place for
- `adapters`: LoRA, added to a model, written, read, merged
- `packed`: quantized while it is read
- `provenance`: where weights come from, and what their licence allows
"""
