"""Comparisons of methods and settings: one cell is one training on the clock, judged."""
