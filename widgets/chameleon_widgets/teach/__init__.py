"""A lesson on a model: from words and patches to the next token, step by step."""
