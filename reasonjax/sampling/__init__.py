"""Generation: the sampler, its logit processors, and the rewards of what it wrote."""
