"""benchmark: measures training end to end against training from a cache, on any images and any machine.

`options` say what is trained, `ways` measures the four ways, each in its own process, `run` runs them all, `result`
holds what was measured and computes what follows, and `showing` shows it.
"""
