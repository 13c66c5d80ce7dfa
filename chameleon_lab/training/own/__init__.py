"""A model of a person's own data, from a folder to `Chameleon`.

- `plan`: what will be trained, how large and for how long, each with its reason
- `documents`: what the gathered data become in training, and the codes of their views
- `samples`: contact sheets on the way, and the best weights
- `scores`, `card`: what the finished model knows, and a page that says so
- `stages`: the pixels of its image tokenizer, and its transformer
- `training`: `OwnTraining`, all of them in a folder
"""
