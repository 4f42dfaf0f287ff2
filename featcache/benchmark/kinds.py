"""The common interface of the three kinds of scenario: measure one, show its result, write its files.

Most scenarios compare the four ways; `growth` and `bigger-than-memory` measure something else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from featcache.benchmark.arithmetic import summarise
from featcache.benchmark.records import GrowthResult, Result, StreamingResult
from featcache.benchmark.scenarios import GROWTH, STREAMING, Scenario
from featcache.benchmark.tables import (
    growth_cells,
    growth_header,
    markdown,
    streaming_cells,
    streaming_header,
    table,
    time_cells,
    time_header,
)
from featcache.benchmark.wording import (
    INTRODUCTION,
    findings,
    growth_findings,
    how_it_was_scaled,
    scenario_text,
    streaming_findings,
    what_was_measured,
    where_it_was_measured,
)
from featcache.extraction.reporting import Reporter

AnyResult = Result | GrowthResult | StreamingResult


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A result for the terminal: sentences before a table, the table, and sentences after it."""

    before: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    after: tuple[str, ...]


def measure(scenario: Scenario, *, data_dir: Path, command: str, today: date, reporter: Reporter | None) -> AnyResult:
    """Measure a scenario of any kind. Raises FeatcacheError."""
    # Imported here because showing a result needs no torch.
    from featcache.benchmark.growth import run_growth
    from featcache.benchmark.run import run_benchmark
    from featcache.benchmark.streaming import run_streaming

    if scenario.name == GROWTH:
        return run_growth(scenario, data_dir=data_dir, command=command, today=today, reporter=reporter)
    run = run_streaming if scenario.name == STREAMING else run_benchmark
    return run(scenario, data_dir=data_dir, command=command, today=today, reporter=reporter)


def screen(result: AnyResult) -> Screen:
    """The result as plain sentences and one table."""
    if isinstance(result, Result):
        note = how_it_was_scaled(result)
        return Screen(
            before=(INTRODUCTION, what_was_measured(result)),
            header=time_header(result),
            rows=tuple(time_cells(result, summarise(result), name) for name in result.ways),
            after=(*findings(result), *([] if note is None else [note])),
        )
    about = (scenario_text(result.scenario), where_it_was_measured(result.machine))
    if isinstance(result, GrowthResult):
        rows: Sequence[tuple[str, ...]] = growth_cells(result)
        return Screen(before=about, header=growth_header(result), rows=tuple(rows), after=growth_findings(result))
    rows = streaming_cells(result)
    return Screen(before=about, header=streaming_header(), rows=tuple(rows), after=streaming_findings(result))


def files(result: AnyResult, name: str = "benchmark") -> dict[str, bytes]:
    """The result as JSON, as Markdown, and its charts, by file name."""
    # Altair takes a second to import.
    from featcache.benchmark.charts import render_charts

    text = json.dumps(result.to_json(), indent=1) + "\n"
    return {f"{name}.json": text.encode(), f"{name}.md": page(result).encode(), **render_charts(charts_of(result))}


def page(result: AnyResult) -> str:
    """The result as a Markdown page."""
    if isinstance(result, Result):
        return markdown(result)
    shown = screen(result)
    paragraphs = [
        f"# Benchmark {result.scenario.name}",
        "\n".join(shown.before),
        table(shown.header, shown.rows),
        "\n".join(shown.after),
        f"Made by `{result.command}`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def charts_of(result: AnyResult) -> dict[str, dict[str, object]]:
    """The result's charts by name, as Vega-Lite."""
    from featcache.benchmark.charts import charts, growth_charts

    if isinstance(result, Result):
        return charts(result)
    return growth_charts(result) if isinstance(result, GrowthResult) else {}
