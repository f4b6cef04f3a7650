"""Formats of other projects: Hugging Face models, PEFT adapters, and the lm-eval harness. The core
never imports it."""
