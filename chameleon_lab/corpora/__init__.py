"""Documents to learn from.

- `scenes`, `checker`: a drawn world with ground truth and its split, and what reads scenes back out of pixels
- `hard_cases`, `sources`: pictures on which image tokenizers give way, and those on this disk
- `conversations`: documents about scenes
- `readers`, `archives`: documents out of a person's files
- `turns`, `alignment`: conversations in others' styles; those to align with, by category, of which answers are learned
- `own_data`, `own_documents`, `views`: those gathered in a folder, what they become in training, and from where seen
- `packing`, `batch_view`: `Batch`, rows of several documents; what of them is learned, by colour
- `shards`, `shard_files`: a corpus tokenized once
- `infilling`, `holes`: documents rearranged so that a model learns to fill blanks; scenes with something hidden
- `requests`: the scene that a request's words name
- `flags`: pictures of which there are too many to learn, with names that only a document explains
- `instructions`, `structure`: many tasks in templates, from scenes, cut-outs and a person's own pairs; their
  segmentations and edges
- `scene_codes`: the codes of scenes, each encoded once
- `mixture`: batches as a function of seed and step
"""
