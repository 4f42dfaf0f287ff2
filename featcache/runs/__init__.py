"""runs: one trained head in a folder of its own: written, read, found, compared."""
