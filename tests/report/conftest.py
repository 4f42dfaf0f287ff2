"""The fixtures of `report_fixtures`, for the tests of this folder."""

from __future__ import annotations

from report_fixtures import one_thread, run, runs, workspace

__all__ = ["one_thread", "run", "runs", "workspace"]
