"""Optimisers and learning-rate schedules, named in config as `optimizer` and `learning_rate`."""
