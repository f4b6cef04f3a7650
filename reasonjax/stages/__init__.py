"""The only imperative code: what a run does, stage by stage."""
