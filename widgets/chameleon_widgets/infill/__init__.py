"""The canvas on which parts of a document are hidden and filled: `draft` (what is hidden), `filler` (what fills it)."""
