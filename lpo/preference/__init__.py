"""Preferences: which pairs to trust, which candidates to pair, and the losses. Pure functions on small tensors."""
