"""Mesh, logical-axis rules and placement."""
