"""Rewards: the latent reward model, and the small scorers of pictures."""
