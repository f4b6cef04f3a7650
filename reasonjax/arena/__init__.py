"""Recipes side by side: what each finished run reached, and what a comparison of them can say."""
