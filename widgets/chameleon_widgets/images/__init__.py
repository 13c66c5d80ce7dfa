"""Image tokenizers: what they keep of a picture, their codebooks, and codes under edit."""
