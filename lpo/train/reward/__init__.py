"""Training of a step reward on stored pairs."""
