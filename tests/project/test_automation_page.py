"""docs/automation.md names the fields that the commands print."""

from __future__ import annotations

import json_fields


def test_the_fields_on_the_page_are_those_that_commands_print_and_each_is_explained() -> None:
    page = json_fields.PAGE.read_text(encoding="utf-8")
    assert page == json_fields.render(page, json_fields.outputs()), "run `python tests/project/json_fields.py`"
    assert "` |  |" not in page, "explain every field"
