"""Pure forward functions over a parameter tree, and the one spec tree everything about parameters
derives from."""
