"""heads: what a head is: its options, architectures, solvers and metrics."""
