"""Evaluation: statistics of paired comparisons, figures, and the report."""
