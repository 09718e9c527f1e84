"""Experiments over many runs: what is trained, what is measured of it, and the tables."""
