"""The fixtures of tests/sharing, defined in shared_things: mypy knows one module called conftest."""

from __future__ import annotations

from shared_things import no_login, shared_run, workspace

__all__ = ["no_login", "shared_run", "workspace"]
