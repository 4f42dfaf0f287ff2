"""heads: the options, architectures, solvers and metrics of heads."""
