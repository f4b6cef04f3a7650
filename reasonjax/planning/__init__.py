"""What a run would need on devices that are not here: memory, time and communication of each
program."""
