"""Writing: tokens, one after the other, of words and of images.

- `grammar`, `samplers`, `guidance`, `settings`: which ids may follow, and which of them is taken
- `decoder`: who does the sums for a token, and the only one who knows how; its parts are `weights`, `kernels`, `lean`,
  `kv_cache` and `recording`
- `continuation`: rows, their twins and the one decoder; the step that adds a token to each
- `session`: a document under way, left and continued
- `infilling`: documents with blanks, and what fills them
- `engine`: streams, batches, scores
"""
