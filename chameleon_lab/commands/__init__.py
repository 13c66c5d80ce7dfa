"""The commands of `chameleon-lab`, a module each.

- `names`: the names that options take, written out, so that help needs no torch
- `parsers`: every command's options; `main`: one command from its words to its exit code
- `loading`: what several commands ask of a model; `progress`: what a terminal shows of a run
- `train`, `launch`, `generate`, `demo`, `reconstruct`, `evaluate`, `coco`, `tokenize`, `stability`, `compare`,
  `convert`, `consolidate`, `plan`: what they do
"""
