"""Predict classes or numbers for images with a trained head.

    predicted = predict("latest", "photos/")
    predicted.images[0].label, predicted.outputs

Tables, JSON and CSV are all made from these records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.config import accepts, divide_options
from featcache.errors import HeadError, SourceError
from featcache.extraction.execution import ComputeOptions
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.heads.metric_records import ListMetrics
from featcache.images.samples import Sample
from featcache.inference.classifier import ChunkOutputs, Classifier
from featcache.inference.options import PredictOptions, Weights
from featcache.inference.pictures import Images, open_pictures
from featcache.inference.records import Guess, ImagePrediction, Predicted, Unread
from featcache.progress import StageProgress
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import BEST, LATEST, better_run, find_run
from featcache.runs.run import Run


@accepts(PredictOptions, ComputeOptions)
def predict(
    run: Run | str | Path,
    images: Images,
    *,
    weights: Weights = None,
    backbone: Network | None = None,
    head: Callable[..., Any] | None = None,
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Predicted:
    """Predict images with the head of a run.

    Args:
        run: A Run, a run's folder, its name in `runs_dir`, the beginning of its name, or "latest".
        images: The path of an image, of a folder with images at any depth, or of a zip or tar archive; the bytes of an
            encoded image; several of these; an ImageSource; or uint8 arrays (H, W, 3) or (N, H, W, 3).
        weights: Where the backbone's weights are now, if they were moved; for several backbones a mapping by name.
        backbone: The module, where the run's backbone is a module of your own.
        head: Makes the head, where it is a module of your own that cannot be imported by its path.
        data_dir: The folder of weights and caches.
        runs_dir: The folder of runs.
        progress: None or True for a progress bar, in a terminal or a notebook; False for none; or a function, called
            with (stage, images done, images in all).
        reporter: Receives messages and progress, in place of the logger "featcache" and of `progress`.
        {options}

    Returns:
        A prediction for each image that was read, and the head's outputs, float32 (N, C).

    Raises:
        WeightsError: The weights are missing, or differ from those that the head was trained with.
        HeadError, UnknownName: The run cannot be used, or does not exist.
        SourceError, ImageError: Images cannot be read.
        CacheNotFound: `neighbours` needs a cache that does not exist any more.
        InvalidOption: An unknown option, or a value that cannot be used.
    """
    own = ("run", "images", "weights", "backbone", "head", "data_dir", "runs_dir", "progress", "reporter")
    what, computing = divide_options(options, "predict", PredictOptions, ComputeOptions, also=own)
    shown, how = PredictOptions(**what), ComputeOptions(**computing)
    with ExitStack() as stack:
        reporter = reporter or stack.enter_context(ProgressReporter(progress))
        run, better = open_run(run, Path(runs_dir), reporter)
        source, samples = open_pictures(images)
        stack.enter_context(closing(source))
        # Open the cache first, so that a missing cache is an error before anything is computed.
        near = stack.enter_context(closing(_Neighbours(run, shown.neighbours, Path(data_dir))))
        classifier = Classifier.of(
            run,
            weights=weights,
            backbone=backbone,
            head=head,
            data_dir=Path(data_dir),
            device=how.device,
            precision=shown.precision,
        )
        answers = _check_failures(classifier.predict_chunks(source, samples, how), how, reporter, len(samples))
        return replace(_collect(run, samples, answers, shown, near), better_run=better)


def open_run(run: Run | str | Path, runs_dir: Path, reporter: Reporter) -> tuple[Run, str | None]:
    """Load a run; where it is asked for as "latest" and another one has a higher score on val, warn.

    Args:
        run: A Run, its folder, its name in `runs_dir`, the beginning of its name, "latest" or "best".
        runs_dir: The folder of runs.
        reporter: Receives the warning.

    Returns:
        The run, and the folder of the better one; None if there is none.

    Raises:
        HeadError, UnknownName: The run cannot be used, or does not exist.
    """
    if isinstance(run, Run):
        return run, None
    folder = find_run(runs_dir, run)
    better = better_run(runs_dir, folder) if str(run) == LATEST else None
    if better is not None:
        reporter.warn(
            f"{LATEST} is {folder.name} with {better.metric} {better.compared:.4g} on val; {better.folder.name} has "
            f"{better.value:.4g} on the same val images: `{BEST}` names it"
        )
    return Run.load(folder), None if better is None else str(better.folder)


def _check_failures(
    answers: Iterator[ChunkOutputs], how: ComputeOptions, reporter: Reporter, total: int
) -> Iterator[ChunkOutputs]:
    done = 0
    reporter.advance("predicting", 0, total)
    for answer in answers:
        if answer.failures and how.on_error == "fail":
            raise answer.failures[0].error
        for failure in answer.failures:
            reporter.warn(f"left out: {failure.error.message}")
        done += len(answer.index) + len(answer.failures)
        reporter.advance("predicting", done, total)
        yield answer


def _collect(
    run: Run,
    samples: Sequence[Sample],
    answers: Iterator[ChunkOutputs],
    shown: PredictOptions,
    near: _Neighbours,
) -> Predicted:
    images: list[ImagePrediction] = []
    rows = [np.empty((0, run.target.outputs), np.float32)]
    thresholds = thresholds_of(run) if run.target.kind == "lists" else ()
    unread: list[Unread] = []
    for answer in answers:
        near.add(answer.features)
        names = [samples[row].id for row in answer.index]
        images += [
            _prediction_of(run.target, name, row, top=shown.top, thresholds=thresholds)
            for name, row in zip(names, answer.outputs, strict=True)
        ]
        rows.append(answer.outputs)
        unread += [Unread(path=samples[one.image].id, reason=one.error.message) for one in answer.failures]
    if not images:
        raise SourceError(f"none of {len(samples)} images could be read: {unread[0].reason}")
    return Predicted(
        run=str(run.folder),
        target=run.target,
        images=near.add_to(images),
        outputs=np.concatenate(rows),
        unread=tuple(unread),
    )


class _Neighbours:
    """The most similar train images of all predicted images: the caches' rows are read once, after the prediction.

    Raises CacheNotFound where `count` is above 0 and a cache does not exist any more.
    """

    def __init__(self, run: Run, count: int, data_dir: Path) -> None:
        self._count, self._open = count, ExitStack()
        if count:
            from featcache.inference.similarity import Queries, RunImages

            self._train = self._open.enter_context(closing(RunImages(run, ("train",), data_dir=data_dir)))
            self._queries = self._open.enter_context(closing(Queries(run.features.feature_dim)))

    def add(self, features: NDArray[np.float32]) -> None:
        """Add the features of images, float32 (n, D)."""
        if self._count:
            self._queries.add(features)

    def add_to(self, images: Sequence[ImagePrediction]) -> tuple[ImagePrediction, ...]:
        """The predictions with their neighbours."""
        if not self._count:
            return tuple(images)
        from featcache.inference.similarity import near_images, nearest

        found = near_images(self._train, *nearest(self._queries, self._train.blocks(), self._count))
        return tuple(replace(image, neighbours=near) for image, near in zip(images, found, strict=True))

    def close(self) -> None:
        """Close the caches."""
        self._open.close()


def thresholds_of(run: Run) -> tuple[float, ...]:
    """The probability from which each class counts as present, chosen on val. Raises HeadError."""
    measured = run.metrics("val")
    if not isinstance(measured, ListMetrics):
        raise HeadError(f"the metrics of the run {run.folder} are not of several classes", hint="train again")
    return measured.thresholds


def _prediction_of(
    target: HeadTarget,
    path: str,
    row: NDArray[np.float32],
    *,
    top: int,
    thresholds: Sequence[float],
) -> ImagePrediction:
    """The prediction for one image, from the head's outputs (C,)."""
    if target.kind == "numbers":
        values = dict(zip(target.names, row.tolist(), strict=True))
        return ImagePrediction(path=path, values=values)
    best = _best(target.names, row, top)
    labels = labels_of(target, row, thresholds) if target.kind == "lists" else None
    return ImagePrediction(path=path, top=best, labels=labels)


def labels_of(target: HeadTarget, row: NDArray[np.float32], thresholds: Sequence[float]) -> tuple[Guess, ...]:
    """Of several classes those whose probability, of the row (C,), reaches its threshold; the most probable first."""
    enough = dict(zip(target.names, thresholds, strict=True))
    return tuple(guess for guess in _best(target.names, row, len(row)) if guess.probability >= enough[guess.label])


def _best(classes: Sequence[str], probabilities: NDArray[np.float32], top: int) -> tuple[Guess, ...]:
    # Among equal probabilities the first class comes first, as with argmax.
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(label=classes[number], probability=float(probabilities[number])) for number in order)
