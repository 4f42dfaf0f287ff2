"""The card of a shared run or cache: README.md, with the metadata that the Hub reads (YAML front matter)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featcache.cache.catalog import CacheEntry
from featcache.cache.spec import Spec
from featcache.heads.metric_records import ClassMetrics, ListMetrics, Measurement, Metrics, NumberErrors
from featcache.runs.run import Run
from featcache.sharing.content import Content
from featcache.sharing.manifest import SharedManifest
from featcache.text import escape_controls, human_bytes

_MOST_CLASSES = 30
# A data set of the Hub, or a set that has a name there: never a path of this machine.
_DATASET = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
Rows = Sequence[tuple[str, ...]]


def card_of(content: Content, manifest: SharedManifest, source: str) -> str:
    """The text of the card.

    Args:
        content: The run or the cache.
        manifest: Its manifest.
        source: What `featcache pull` takes, for the example.
    """
    of = content.of
    about = list(_about_run(of) if isinstance(of, Run) else _about_cache(of))
    parts = [
        _front_matter(content, manifest),
        f"# {_text(content.name)}",
        _INTRODUCTION[content.kind],
        _table(("", ""), [*about, ("licence", manifest.licence or "not stated")]),
        *(part for spec in content.specs for part in _spec_parts(spec)),
        *(_metrics_parts(of) if isinstance(of, Run) else ()),
        "## How to use",
        _code_block("python", _usage(content, source)),
        "## Files",
        _table(
            ("file", "size", "SHA-256"), [(one.name, human_bytes(one.nbytes), one.sha256) for one in manifest.files]
        ),
    ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = {
    "run": "A head that featcache trained on the features of a frozen backbone. "
    "The backbone is not included: featcache loads it and refuses weights or a transform other than those below.",
    "cache": "Features of a frozen backbone, computed by featcache. Heads are "
    "trained on them without images and without the backbone.",
}


def _front_matter(content: Content, manifest: SharedManifest) -> str:
    of = content.of
    tags = ["featcache", "feature-extraction"]
    values: dict[str, Any] = {"library_name": "featcache"}
    if isinstance(of, Run):
        tags += ["frozen-backbone", of.config.head]
        if of.target.kind != "numbers":
            values["pipeline_tag"] = "image-classification"
    else:
        values["pretty_name"] = content.name
    values["tags"] = tags
    if manifest.licence is not None:
        values["license"] = manifest.licence.lower()
    if datasets := _datasets(of):
        values["datasets" if isinstance(of, Run) else "source_datasets"] = datasets
    # JSON values are YAML too, so that no name can end the front matter.
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _datasets(of: Run | CacheEntry) -> list[str]:
    if isinstance(of, Run):
        named = [origin.images for origin in of.features.origins]
    else:
        named = [of.selection.source if of.selection else None]
    names = [(text or "").removeprefix("hf:").partition("?")[0] for text in named]
    return list(dict.fromkeys(name for name in names if _DATASET.fullmatch(name)))


def _about_run(run: Run) -> Iterator[tuple[str, str]]:
    yield "head", run.config.head
    yield "features", run.features.label
    yield "predicts", f"{run.target.kind}: {_few(run.target.names)}"
    yield "parameters", f"{run.training.trainable:,} trained"
    yield "images", ", ".join(f"{count:,} {part}" for part, count in run.training.images.items())
    yield "trained", run.created
    yield "SHA-256 of the head's weights", run.weights_sha256


def _about_cache(entry: CacheEntry) -> Iterator[tuple[str, str]]:
    yield "data set", entry.set_name or "-"
    yield "rows", ", ".join(f"{rows:,} {split}" for split, rows in (entry.rows or {}).items())
    if entry.spec is not None:
        yield "features", ", ".join(f"{layer.name}: {layer.feature_dim:,}" for layer in entry.spec.layers)
        yield "views", entry.spec.views_description
    yield "created", entry.created or "-"


def _spec_parts(spec: Spec) -> Iterator[str]:
    yield f"## Backbone {_text(spec.backbone)}"
    fields = ("decoder", "precision", "runner", "dtype")
    yield _table(("", ""), [("fingerprint", spec.fingerprint), *((name, str(getattr(spec, name))) for name in fields)])
    yield _table(
        ("layer", "shape", "pooling", "SHA-256 of its weights"),
        [
            (one.name, " x ".join(map(str, one.shape)), one.pool, one.weights or "no weights: pixels")
            for one in spec.layers
        ],
    )
    yield _table(("transform", "value"), [(name, json.dumps(value)) for name, value in _plain(spec.transform).items()])
    if spec.architecture:
        yield _table(
            ("architecture", "value"), [(name, json.dumps(v)) for name, v in _plain(spec.architecture).items()]
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Frozen maps as plain ones, for JSON."""
    return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _metrics_parts(run: Run) -> Iterator[str]:
    yield "## Metrics"
    yield "With 95 % confidence intervals. val chose the epoch and the settings; test was used once."
    parts = ["val", *(["test"] if run.training.test is not None else [])]
    rows = [(part, *row) for part in parts for row in _metric_rows(run.metrics(part), run.target.names)]
    yield _table(("images", "metric", "value", "95 % interval"), rows)


def _metric_rows(measured: Metrics, names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    if isinstance(measured, ClassMetrics):
        yield "accuracy", f"{measured.accuracy:.4f}", _interval(measured.accuracy_interval)
        yield "balanced accuracy", f"{measured.balanced_accuracy:.4f}", "-"
        yield "macro F1", f"{measured.macro_f1:.4f}", "-"
        yield "calibration error", f"{measured.calibration_error:.4f}", "-"
    elif isinstance(measured, ListMetrics):
        yield "mean average precision", f"{measured.map:.4f}", _interval(measured.map_interval)
        yield "micro F1", f"{measured.micro_f1:.4f}", "-"
        yield "macro F1", f"{measured.macro_f1:.4f}", "-"
    else:
        columns = dict(zip(names, measured.columns, strict=True)) if len(names) > 1 else {}
        yield from _error_rows("", measured.overall)
        for name, errors in columns.items():
            yield from _error_rows(f" of {name}", errors)


def _error_rows(suffix: str, errors: NumberErrors) -> Iterator[tuple[str, str, str]]:
    found = {"R2": errors.r2, "MAE": errors.mae, "RMSE": errors.rmse, "Spearman": errors.spearman}
    for name, one in found.items():
        if isinstance(one, Measurement):
            yield f"{name}{suffix}", f"{one.value:.4g}", _interval(one.interval)


def _interval(limits: tuple[float, float]) -> str:
    return f"{limits[0]:.4g} to {limits[1]:.4g}"


def _usage(content: Content, source: str) -> Sequence[str]:
    pull = f"pulled = featcache.pull({json.dumps(source)})"
    use = 'featcache.predict(pulled.path, "photos/")' if content.kind == "run" else "featcache.train_head(pulled.path)"
    return ("import featcache", pull, use)


def _code_block(language: str, lines: Sequence[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    return ", ".join(names[:_MOST_CLASSES]) + more


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_text, cells))} |" for cells in lines)


def _text(text: str) -> str:
    """Text that Markdown and HTML show as it is: names of classes and files come from anywhere."""
    return re.sub(r"([\\`*_<>|\[\]#&])", r"\\\1", escape_controls(text))
