"""A run as one file that anyone can ask, published only after it has said what featcache says.

The file is written beside its place, opened again by the runtime it is meant for, and asked about real images. Only if
every number is within `TOLERANCE` of featcache's own fp32 prediction, and every image's first class is the same, it
takes its name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.errors import ExportError, InvalidOption, UnknownName
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.run import Execution
from featcache.files import file_aside
from featcache.images import ArraySource, decode
from featcache.inference.classifier import Classifier, Weights, spec_of
from featcache.inference.formats import NETWORK_FORMATS, Ask, NetworkFormat
from featcache.inference.network import WholeNetwork
from featcache.inference.pictures import Images, opened
from featcache.inference.prediction import thresholds_of
from featcache.inference.witnesses import cached_images
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import find_run
from featcache.runs.run import Run

TOLERANCE = 1e-3
_BATCH = 8

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """A published file: on how many images it was checked, and the greatest difference of an output there.

    `target`: what it says. Differences of numbers are in parts of the largest of an image, if that is above 1.
    """

    path: Path
    format: str
    run: str
    target: HeadTarget
    nbytes: int
    images: int
    greatest_difference: float

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache export RUN --json`."""
        return {
            "path": str(self.path),
            "format": self.format,
            "run": self.run,
            "classes": [] if self.target.kind == "numbers" else list(self.target.names),
            "target": self.target.to_json(),
            "bytes": self.nbytes,
            "verified": {"images": self.images, "greatest_difference": self.greatest_difference}
            | ({"same_top1": True} if self.target.kind == "classes" else {}),
        }


def export_run(
    run: Run | str | Path,
    path: str | Path,
    format: str = "onnx",
    *,
    verify_images: Images | None = None,
    verify_limit: int = 32,
    weights: Weights = None,
    backbone: Network | None = None,
    head: Callable[..., Any] | None = None,
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    reporter: Reporter | None = None,
) -> ExportedRun:
    """Write a run as one file, `images` (N, H, W, 3) uint8 -> `probabilities` (N, C), or `values` of numbers.

    `format`: "onnx" or "pt2". `verify_images`: real images to check the file on, `verify_limit` of them; without them
    those that the run's cache was extracted from. `weights`, `backbone`, `head`, `data_dir`, `runs_dir`: as for
    `predict`.

    Raises ExportError where the network cannot be exported, or what was written does not say what featcache says:
    nothing is left behind then, and what stood under the name before stands there still. Raises MissingExtra,
    and what `predict` raises.
    """
    kind = _kind(format)
    kind.require()
    if verify_limit < 1:
        raise InvalidOption(f"expected --verify-limit of at least 1, got {verify_limit}")
    run = run if isinstance(run, Run) else Run.load(find_run(Path(runs_dir), run))
    reporter, path, data_dir = reporter or LogReporter(), Path(path), Path(data_dir)
    images = _witnesses(run, verify_images, verify_limit, data_dir)
    classifier = Classifier.of(run, weights=weights, backbone=backbone, head=head, data_dir=data_dir, device="cpu")
    reporter.say(f"asking featcache about {len(images)} images")
    expected = _asked(classifier, images)
    with file_aside(path) as building:
        reporter.say(f"writing {path.name}")
        kind.write(WholeNetwork(classifier), building, _metadata(run, classifier), _output(run.target))
        difference = _require_same(kind.open(building), images, expected, run.target, kind.name, reporter)
    return ExportedRun(
        path=path,
        format=kind.name,
        run=str(run.folder),
        target=run.target,
        nbytes=path.stat().st_size,
        images=len(images),
        greatest_difference=difference,
    )


def _kind(name: str) -> NetworkFormat:
    if name not in NETWORK_FORMATS:
        raise UnknownName("format of a run", name, NETWORK_FORMATS)
    return NETWORK_FORMATS[name]


def _witnesses(run: Run, images: Images | None, limit: int, data_dir: Path) -> list[Pixels]:
    """Decoded images (H, W, 3), and two cuttings of the first: the file must take any size."""
    if images is None:
        found = cached_images(run, limit, data_dir)
    else:
        source, samples = opened(images)
        with closing(source):
            found = [decode(source.read(sample), sample.id) for sample in samples[:limit]]
    height, width = found[0].shape[:2]
    return [
        *found,
        np.ascontiguousarray(found[0][: max(1, 2 * height // 3)]),
        np.ascontiguousarray(found[0][:, : max(1, width // 2)]),
    ]


def _asked(classifier: Classifier, images: Sequence[Pixels]) -> NDArray[np.float32]:
    source = ArraySource(images, split="test")
    answers = classifier.answers(source, source.samples("test"), Execution(device="cpu"))
    return np.concatenate([answer.outputs for answer in answers])


def _require_same(
    ask: Ask,
    images: Sequence[Pixels],
    expected: NDArray[np.float32],
    target: HeadTarget,
    format: str,
    reporter: Reporter,
) -> float:
    """The greatest difference of an output. Raises ExportError where it is too large, or a first class differs."""
    greatest, done = 0.0, 0
    for rows in _batches(images):
        got, wanted = ask(np.stack([images[row] for row in rows])), expected[rows]
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise ExportError(f"the {format} file gives no {_output(target)} {wanted.shape}: got {got.shape}")
        differences = np.abs(got - wanted).max(axis=1) / np.maximum(1, np.abs(wanted).max(axis=1))
        wrong = differences > TOLERANCE
        if target.kind == "classes":
            wrong |= got.argmax(axis=1) != wanted.argmax(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ExportError(
                f"the {format} file does not say what featcache says: on image {rows[row] + 1} of {len(images)} "
                f"expected {_said(wanted[row], target)}, got {_said(got[row], target)}; the greatest difference is "
                f"{differences.max():.2g}, {TOLERANCE:g} is allowed",
                hint="nothing was written; another --format may do",
            )
        greatest, done = max(greatest, float(differences.max())), done + len(rows)
        reporter.advance("verifying images", done, len(images))
    return greatest


def _said(row: NDArray[np.float32], target: HeadTarget) -> str:
    """The first class, or the numbers."""
    named = zip(target.names, row.tolist(), strict=True)
    if target.kind == "numbers":
        return ", ".join(f"{name} {value:.4g}" for name, value in named)
    return "{} {:.4f}".format(*max(named, key=lambda pair: pair[1]))


def _output(target: HeadTarget) -> str:
    return "values" if target.kind == "numbers" else "probabilities"


def _batches(images: Sequence[Pixels]) -> Iterator[list[int]]:
    """Images of one size together: the first alone, the others in batches."""
    of_size: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        of_size.setdefault(image.shape, []).append(row)
    for rows in of_size.values():
        yield rows[:1]
        for start in range(1, len(rows), _BATCH):
            yield rows[start : start + _BATCH]


def _metadata(run: Run, classifier: Classifier) -> dict[str, Any]:
    """What the file says of itself."""
    return {
        "featcache": version("featcache"),
        "run": run.folder.name,
        "created": run.created,
        "head": run.config.head,
        "classes": list(run.classes),
        "target": run.target.to_json(),
        **({"thresholds": list(thresholds_of(run))} if run.target.kind == "lists" else {}),
        "backbones": [
            {
                "backbone": origin.backbone,
                "layers": [layer.name for layer in origin.layers],
                "fingerprint": origin.fingerprint,
                "weights": {layer.name: layer.weights for layer in spec_of(origin).layers},
                "transform": json.loads(origin.spec)["transform"],
            }
            for origin in run.features.origins
        ],
        "input": "images: uint8 (N, H, W, 3), RGB, any N, H and W",
        "output": f"{_output(run.target)}: float32 (N, {'columns' if run.target.kind == 'numbers' else 'classes'})",
    }
