"""What a weight can be, how it is applied, and which weights train."""
