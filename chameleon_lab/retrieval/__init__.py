"""Documents that help: looked up in a bank, put before a document, for training and for generation.

- `encoders`: words and pictures to vectors of one space
- `bank`: `Bank`, documents with their vectors, searched and saved
- `rules`: which of the documents near a query are taken
- `prompts`: documents before a document, what has no room, and guidance that keeps them
- `augmentation`: training documents, each behind what was retrieved for it
- `retriever`: `Retriever`, a model with a bank; `Lookup`, what it looked up beside what it drew
"""
