"""Model folders of Hugging Face: read, written, and what each family of models is."""
