"""The fixtures of tests/inference: one workspace for all tests that only read it, and one thread for tiny heads."""

from __future__ import annotations

from inference_fixtures import one_thread, pixel_run, run, workspace

__all__ = ["one_thread", "pixel_run", "run", "workspace"]
