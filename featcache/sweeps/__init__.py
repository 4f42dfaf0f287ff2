"""sweeps: trains many heads on the same rows and ranks them."""
