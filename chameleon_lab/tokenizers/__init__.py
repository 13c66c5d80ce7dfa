"""Documents to tokens and back.

- `preparation`: policies from any picture to pixels
- `quantizers`, `levels`: latents to codes, with a learned book or with nothing to learn; an adapter for other packages'
- `image`: pixels to codes and back
- `networks`, `losses`: what an image tokenizer learns from
- `text`: SentencePiece, bytes, the family's JSON
- `grids`: how an image's codes lie among tokens
- `mixed`: `MixedModalTokenizer`, documents to tokens and a stream of tokens to pieces; what a checkpoint lacks
"""
