"""Models on disk: the lab's own format, and the family's.

- `tensors`, `torch_files`: tensors in files, read and written one at a time
- `opened`: what a checkpoint holds, its transformer read or not yet
- `native`: the lab's own folder
- `names`: one table of names, and what is done to tensors between formats
- `meta`, `huggingface`: the folders of the release and of the port, in its three dialects
- `text_files`: the text tokenizer and the vocabulary in either
- `formats`: which of all these a folder is; reading it, and writing any of them
- `packed`: quantized while it is read
- `provenance`: where weights come from, and what their licence allows
"""
