"""The fixtures of tests/inference: one house for all tests that only look, and one thread for tiny heads."""

from __future__ import annotations

from inference_fixtures import house, one_thread, pixel_run, run

__all__ = ["house", "one_thread", "pixel_run", "run"]
