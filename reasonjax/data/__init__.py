"""Data: sources, tokenizers, rendering to tokens and weights, packing, and the resumable
iterator."""
