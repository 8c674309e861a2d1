"""Data: the pairs, the contract they are held to, and the latents that training reads."""
