"""Exports a run as one file, or as a folder for training, and keeps it only if it predicts what featcache predicts.

The file is written under a temporary name, opened by the runtime that it is meant for, and run on real images: by
default those that the run's cache was extracted from. It gets its name only if every output is within `TOLERANCE` of
featcache's own fp32 prediction (of a number: relative to the largest one of its column), and the most probable class of
every image is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.cache.reader import FeatureCache
from featcache.config import accepts, divide_options
from featcache.display import Shown
from featcache.errors import CacheError, ExportError, FeatcacheError, UnknownName
from featcache.extraction.execution import ComputeOptions
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.images import ArraySource, decode, select
from featcache.inference.array_files import bytes_of
from featcache.inference.classifier import Classifier
from featcache.inference.formats import NETWORK_FORMATS, NetworkFormat, PredictFile, output_name
from featcache.inference.options import RunExportOptions, Weights
from featcache.inference.pictures import Images, open_pictures, source_of
from featcache.inference.prediction import open_run, thresholds_of
from featcache.progress import StageProgress
from featcache.rows.origins import FeatureOrigin
from featcache.rows.target import HeadTarget
from featcache.runs.run import Run

TOLERANCE = 1e-3
_BATCH = 8
_IMAGES_HINT = "name images: --verify-images, a folder, an archive or a file"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportedRun(Shown):
    """A published file or folder.

    Attributes:
        path: The file or folder.
        format: Its format.
        run: The folder of the run.
        target: What the outputs are.
        nbytes: Its size in bytes.
        images: On how many images it was checked.
        greatest_difference: The greatest difference of an output from featcache's; of numbers, relative to the largest
            one of their column.
        better_run: The folder of a run with a higher score on val, where "latest" was asked for and there is one.
    """

    path: Path
    format: str
    run: str
    target: HeadTarget
    nbytes: int
    images: int
    greatest_difference: float
    better_run: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache export RUN --json`."""
        return {
            "path": str(self.path),
            "format": self.format,
            "run": self.run,
            "better_run": self.better_run,
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
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> ExportedRun:
    """Write a run as one file: `images` (N, H, W, 3) uint8 -> `probabilities` (N, C), or `values` for numbers.

    Args:
        run: A Run, its folder, its name in `runs_dir`, the beginning of its name, "latest" or "best".
        path: The file to write; an existing one is replaced. For "torch" a new folder.
        format: "onnx", "pt2", or "torch": backbone and head as one nn.Module, to train both together.
        verify_images: Real images to check the file on; None: those that the run's cache was extracted from.
        weights, backbone, head, device, data_dir, runs_dir: As for `predict`; the device computes what the file's
            outputs are compared with.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, images done, images in all).
        reporter: Receives messages and progress, in place of the logger "featcache" and of `progress`.
        {options}

    Returns:
        The file, and how far its outputs are from featcache's.

    Raises:
        ExportError: The network cannot be exported, or the outputs of the file differ from featcache's. Nothing is
            written then, and an existing file at `path` is kept.
        InvalidOption: The folder to write exists.
        MissingExtra: A package that the format needs is not installed.
        FeatcacheError: What `predict` raises.
    """
    own = ("verify_images", "weights", "backbone", "head", "device", "data_dir", "runs_dir", "progress", "reporter")
    (given,) = divide_options(options, "export_run", RunExportOptions, also=own)
    checks = RunExportOptions(**given)
    kind = _kind(format)
    kind.require()
    path, data_dir = Path(path), Path(data_dir)
    with ExitStack() as opened:
        reporter = reporter or opened.enter_context(ProgressReporter(progress))
        run, better = open_run(run, Path(runs_dir), reporter)
        images = _verification_images(run, verify_images, checks.verify_limit, data_dir)
        classifier = Classifier.of(run, weights=weights, backbone=backbone, head=head, data_dir=data_dir, device=device)
        weights_dir = data_dir / "weights"
        exported = _export(kind, run, path, images, classifier, weights_dir, reporter)
        return replace(exported, better_run=better)


def _export(
    kind: NetworkFormat,
    run: Run,
    path: Path,
    images: Sequence[Pixels],
    classifier: Classifier,
    weights_dir: Path,
    reporter: Reporter,
) -> ExportedRun:
    """Write the file, and keep it if its outputs are featcache's."""
    reporter.info(f"predicting {len(images)} images with featcache")
    expected = _predict(classifier, images, reporter)
    with kind.atomic(path) as building:
        reporter.info(f"writing {path.name}")
        kind.write(classifier, building, _metadata(run, classifier), weights_dir)
        difference = _require_same(kind.open(building), images, expected, run.target, kind.name, reporter)
    return ExportedRun(
        path=path,
        format=kind.name,
        run=str(run.folder),
        target=run.target,
        nbytes=bytes_of(path),
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
        found = _images_of_cache(run, limit, data_dir)
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


def _images_of_cache(run: Run, limit: int, data_dir: Path) -> list[Pixels]:
    """At most `limit` images of the run's set, decoded: uint8 (H, W, 3).

    They are test images where there are some, balanced over the classes.

    Raises ExportError where they cannot be read without a download.
    """
    name = _images_name(run.features)
    if name is None:
        raise ExportError(f"{run.folder.name} has no record of the images it was trained on", hint=_IMAGES_HINT)
    try:
        with closing(source_of(name, data_dir)) as source:
            split = next(split for split in ("test", "val", "train") if split in source.splits())
            samples = select(source.samples(split), limit)
            return [decode(source.read(sample), sample.id) for sample in samples]
    except FeatcacheError as error:
        raise ExportError(
            f"the images to check the file on cannot be read: {error.message}", hint=_IMAGES_HINT
        ) from error


def _images_name(origin: FeatureOrigin) -> str | None:
    if origin.images is not None:
        return origin.images
    try:
        with FeatureCache.open(origin.cache) as cache:
            return cache.selection.source
    except CacheError:
        return None


def _predict(classifier: Classifier, images: Sequence[Pixels], reporter: Reporter) -> NDArray[np.float32]:
    source = ArraySource(images, split="test")
    outputs: list[NDArray[np.float32]] = []
    done = 0
    reporter.advance("predicting", done, len(images))
    for answer in classifier.predict_chunks(source, source.samples("test"), ComputeOptions()):
        outputs.append(answer.outputs)
        done += len(answer.outputs)
        reporter.advance("predicting", done, len(images))
    return np.concatenate(outputs)


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
    largest = np.abs(expected).max(axis=0) if target.kind == "numbers" else np.ones(target.outputs, np.float32)
    scale = np.where(largest > 0, largest, 1)
    for rows in _batches(images):
        got, wanted = predict_file(np.stack([images[row] for row in rows])), expected[rows]
        if got.shape != wanted.shape or not np.isfinite(got).all():
            raise ExportError(f"the {format} file gives no {output_name(target)} {wanted.shape}: got {got.shape}")
        differences = (np.abs(got - wanted) / scale).max(axis=1)
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
        "output": f"{output_name(run.target)}: float32 (N, {'columns' if run.target.kind == 'numbers' else 'classes'})",
    }
