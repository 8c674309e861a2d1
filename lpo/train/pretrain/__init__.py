"""Training of the embedded base model and of its scorers."""
