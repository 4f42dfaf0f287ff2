"""sweeps: many heads over the same rows: grid, trials, results."""
