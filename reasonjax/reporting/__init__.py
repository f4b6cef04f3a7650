"""A page of what a run did."""
