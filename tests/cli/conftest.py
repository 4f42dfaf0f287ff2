"""The fixtures of tests/cli, defined in cli_fixtures: mypy knows one module called conftest."""

from __future__ import annotations

from cli_fixtures import cache, damaged, here, one_thread, unfinished

__all__ = ["cache", "damaged", "here", "one_thread", "unfinished"]
