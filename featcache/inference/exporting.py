"""Exports a run as one file, and keeps it only if its outputs match featcache's on real images.

The file is written under a temporary name, opened by the runtime that it is meant for, and run on real images. It gets
its name only if every number is within `TOLERANCE` of featcache's own fp32 prediction, and the most probable class of
every image is the same.
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
from featcache.config import accepts, divide_options
from featcache.errors import ExportError, UnknownName
from featcache.extraction.execution import ComputeOptions
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.files import atomic_file
from featcache.images import ArraySource, decode
from featcache.inference.classifier import Classifier
from featcache.inference.formats import NETWORK_FORMATS, NetworkFormat, PredictFile
from featcache.inference.network import WholeNetwork
from featcache.inference.options import RunExportOptions, Weights
from featcache.inference.pictures import Images, open_pictures
from featcache.inference.prediction import thresholds_of
from featcache.inference.verification_images import images_of_cache
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import find_run
from featcache.runs.run import Run

TOLERANCE = 1e-3
_BATCH = 8

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ExportedRun:
    """A published file.

    Attributes:
        path: The file.
        format: Its format.
        run: The folder of the run.
        target: What the outputs are.
        nbytes: Its size in bytes.
        images: On how many images it was checked.
        greatest_difference: The greatest difference of an output from featcache's. For an image whose largest output is
            above 1, it is relative to that output.
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


@accepts(RunExportOptions)
def export_run(
    run: Run | str | Path,
    path: str | Path,
    format: str = "onnx",
    *,
    verify_images: Images | None = None,
    weights: Weights = None,
    backbone: Network | None = None,
    head: Callable[..., Any] | None = None,
    device: str = "auto",
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportedRun:
    """Write a run as one file: `images` (N, H, W, 3) uint8 -> `probabilities` (N, C), or `values` for numbers.

    Args:
        run: A Run, its folder, its name in `runs_dir`, the beginning of its name, or "latest".
        path: The file to write; an existing one is replaced.
        format: "onnx" or "pt2".
        verify_images: Real images to check the file on; None: those that the run's cache was extracted from.
        weights, backbone, head, device, data_dir, runs_dir: As for `predict`; the device computes what the file's
            outputs are compared with.
        reporter: Receives messages and progress.
        {options}

    Returns:
        The file, and how far its outputs are from featcache's.

    Raises:
        ExportError: The network cannot be exported, or the outputs of the file differ from featcache's. Nothing is
            written then, and an existing file at `path` is kept.
        MissingExtra: A package that the format needs is not installed.
        FeatcacheError: What `predict` raises.
    """
    kind = _kind(format)
    kind.require()
    own = ("verify_images", "weights", "backbone", "head", "device", "data_dir", "runs_dir", "reporter")
    (given,) = divide_options(options, "export_run", RunExportOptions, also=own)
    run = run if isinstance(run, Run) else Run.load(find_run(Path(runs_dir), run))
    reporter, path, data_dir = reporter or LogReporter(), Path(path), Path(data_dir)
    images = _verification_images(run, verify_images, RunExportOptions(**given).verify_limit, data_dir)
    classifier = Classifier.of(run, weights=weights, backbone=backbone, head=head, data_dir=data_dir, device=device)
    reporter.info(f"predicting {len(images)} images with featcache")
    expected = _predict(classifier, images)
    with atomic_file(path) as building:
        reporter.info(f"writing {path.name}")
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


def _verification_images(run: Run, images: Images | None, limit: int, data_dir: Path) -> list[Pixels]:
    """Decoded images (H, W, 3), and two crops of the first, because the file must accept any size."""
    if images is None:
        found = images_of_cache(run, limit, data_dir)
    else:
        source, samples = open_pictures(images)
        with closing(source):
            found = [decode(source.read(sample), sample.id) for sample in samples[:limit]]
    height, width = found[0].shape[:2]
    return [
        *found,
        np.ascontiguousarray(found[0][: max(1, 2 * height // 3)]),
        np.ascontiguousarray(found[0][:, : max(1, width // 2)]),
    ]


def _predict(classifier: Classifier, images: Sequence[Pixels]) -> NDArray[np.float32]:
    source = ArraySource(images, split="test")
    answers = classifier.predict_chunks(source, source.samples("test"), ComputeOptions())
    return np.concatenate([answer.outputs for answer in answers])


def _require_same(
    predict_file: PredictFile,
    images: Sequence[Pixels],
    expected: NDArray[np.float32],
    target: HeadTarget,
    format: str,
    reporter: Reporter,
) -> float:
    """The greatest difference of an output.

    Raises ExportError where it is too large, or where the most probable class of an image differs.
    """
    greatest, done = 0.0, 0
    for rows in _batches(images):
        got, wanted = predict_file(np.stack([images[row] for row in rows])), expected[rows]
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise ExportError(f"the {format} file gives no {_output(target)} {wanted.shape}: got {got.shape}")
        differences = np.abs(got - wanted).max(axis=1) / np.maximum(1, np.abs(wanted).max(axis=1))
        wrong = differences > TOLERANCE
        if target.kind == "classes":
            wrong |= got.argmax(axis=1) != wanted.argmax(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ExportError(
                f"the outputs of the {format} file differ from featcache's: on image {rows[row] + 1} of {len(images)} "
                f"expected {_describe(wanted[row], target)}, got {_describe(got[row], target)}; "
                f"the greatest difference is {differences.max():.2g}, {TOLERANCE:g} is allowed",
                hint="nothing was written; another --format may work",
            )
        greatest, done = max(greatest, float(differences.max())), done + len(rows)
        reporter.advance("verifying images", done, len(images))
    return greatest


def _describe(row: NDArray[np.float32], target: HeadTarget) -> str:
    """The most probable class, or the numbers, as text."""
    named = zip(target.names, row.tolist(), strict=True)
    if target.kind == "numbers":
        return ", ".join(f"{name} {value:.4g}" for name, value in named)
    return "{} {:.4f}".format(*max(named, key=lambda pair: pair[1]))


def _output(target: HeadTarget) -> str:
    return "values" if target.kind == "numbers" else "probabilities"


def _batches(images: Sequence[Pixels]) -> Iterator[list[int]]:
    """Indices of images of the same size: the first one alone, to check a batch of 1, the others in batches."""
    of_size: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
        of_size.setdefault(image.shape, []).append(row)
    for rows in of_size.values():
        yield rows[:1]
        for start in range(1, len(rows), _BATCH):
            yield rows[start : start + _BATCH]


def _metadata(run: Run, classifier: Classifier) -> dict[str, Any]:
    """The metadata of the file."""
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
                "weights": {layer.name: layer.weights for layer in origin.layers_spec.layers},
                "transform": json.loads(origin.spec)["transform"],
            }
            for origin in run.features.origins
        ],
        "input": "images: uint8 (N, H, W, 3), RGB, any N, H and W",
        "output": f"{_output(run.target)}: float32 (N, {'columns' if run.target.kind == 'numbers' else 'classes'})",
    }
