"""training: fit heads on cached features, with checkpoints and early stopping."""
