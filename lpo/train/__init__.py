"""Training: rollouts, trainers and checkpoints."""
