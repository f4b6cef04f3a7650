"""What a run writes down: metrics, completions, TensorBoard events, progress on the screen."""
