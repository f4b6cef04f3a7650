"""What a run does: its stages, the one training loop, and the step that the loop repeats."""
