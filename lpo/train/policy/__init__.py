"""Training of the policy, a LoRA adapter."""
