"""A document as a model holds it: where it looked, what it thought likely, and what a token's absence changes."""
