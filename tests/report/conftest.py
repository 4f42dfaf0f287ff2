"""The fixtures of `report_fixtures`, for the tests of this folder."""

from __future__ import annotations

from report_fixtures import house, one_thread, run, runs

__all__ = ["house", "one_thread", "run", "runs"]
