"""runs: writes, reads, finds and compares runs; a run is one trained head in its own folder."""
