"""training: heads trained by steps, their checkpoints, their standardisation."""
