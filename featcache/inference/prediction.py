"""A run and images in, classes or numbers out.

    predicted = predict("latest", "photos/")
    predicted.images[0].label, predicted.outputs

What a table, JSON and CSV show is the same record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.errors import HeadError, InvalidOption, SourceError
from featcache.extraction.execution import Execution
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.heads.metric_records import ListMetrics
from featcache.images.samples import Sample
from featcache.inference.classifier import Answers, Classifier, Weights
from featcache.inference.pictures import Images, opened
from featcache.inference.records import Guess, ImagePrediction, NearImage, Predicted, Unread
from featcache.rows.target import HeadTarget
from featcache.runs.catalog import find_run
from featcache.runs.run import Run

if TYPE_CHECKING:
    from featcache.inference.nearest import NearestImages


def predict(
    run: Run | str | Path,
    images: Images,
    *,
    top: int = 3,
    neighbours: int = 0,
    weights: Weights = None,
    backbone: Network | None = None,
    head: Callable[..., Any] | None = None,
    precision: Literal["fp32", "auto", "bf16", "fp16"] = "fp32",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    data_dir: str | Path = "data",
    runs_dir: str | Path = "runs",
    reporter: Reporter | None = None,
) -> Predicted:
    """What the head of a run says of images.

    `run`: a Run, a run's folder, its name in `runs_dir`, how that begins, or "latest". `images`: the path of an
    image, of a folder with images anywhere in it, of a zip or tar of some, the bytes of an encoded image, several of
    these, an ImageSource, or uint8 arrays (H, W, 3). `top`: how many classes are named for an image. `neighbours`:
    how many of the nearest cached train images are shown, by cosine; it needs the cache that the head was trained on.
    `weights`: where the backbone's weights are now, if elsewhere than when the head was trained; of several backbones
    a mapping by name. `backbone`: one's own, where the run's was a module. `head`: what makes
    the head, where it is one's own and cannot be imported by its path. `precision`: how features are computed.
    `on_error`: "fail" at the first image that cannot be read, or "skip".

    Raises WeightsError where the weights are gone or are not those the head was trained on, HeadError or UnknownName
    for the run, SourceError or ImageError for images, CacheNotFound where neighbours need a cache that is gone.
    """
    how = Execution(device=device, batch_size=batch_size, workers=workers, on_error=on_error)
    if top < 1 or neighbours < 0:
        raise InvalidOption(f"expected --top of at least 1 and --neighbours of at least 0, got {top} and {neighbours}")
    run = run if isinstance(run, Run) else Run.load(find_run(Path(runs_dir), run))
    reporter = reporter or LogReporter()
    with ExitStack() as stack:
        source, samples = opened(images)
        stack.enter_context(closing(source))
        # The cache is looked for before anything is computed.
        nearest = stack.enter_context(closing(_train_images(run, Path(data_dir)))) if neighbours else None
        classifier = Classifier.of(
            run,
            weights=weights,
            backbone=backbone,
            head=head,
            data_dir=Path(data_dir),
            device=device,
            precision=precision,
        )
        answers = _accepted(classifier.answers(source, samples, how), how, reporter, len(samples))
        return _predicted(run, samples, answers, top, neighbours, nearest)


def _train_images(run: Run, data_dir: Path) -> NearestImages:
    from featcache.inference.nearest import NearestImages

    return NearestImages(run, data_dir=data_dir)


def _accepted(answers: Iterator[Answers], how: Execution, reporter: Reporter, total: int) -> Iterator[Answers]:
    done = 0
    for answer in answers:
        if answer.failures and how.on_error == "fail":
            raise answer.failures[0].error
        for failure in answer.failures:
            reporter.warn(f"left out: {failure.error.message}")
        done += len(answer.index) + len(answer.failures)
        reporter.advance("predicting", done, total)
        yield answer


def _predicted(
    run: Run,
    samples: Sequence[Sample],
    answers: Iterator[Answers],
    top: int,
    neighbours: int,
    nearest: NearestImages | None,
) -> Predicted:
    images: list[ImagePrediction] = []
    rows = [np.empty((0, run.target.outputs), np.float32)]
    thresholds = thresholds_of(run) if run.target.kind == "lists" else ()
    unread: list[Unread] = []
    for answer in answers:
        near = [()] * len(answer.index) if nearest is None else nearest.find(answer.features, neighbours)
        names = [samples[row].id for row in answer.index]
        images += [
            _said(run.target, name, row, top=top, thresholds=thresholds, neighbours=found)
            for name, row, found in zip(names, answer.outputs, near, strict=True)
        ]
        rows.append(answer.outputs)
        unread += [Unread(path=samples[one.image].id, reason=one.error.message) for one in answer.failures]
    if not images:
        raise SourceError(f"none of {len(samples)} images could be read: {unread[0].reason}")
    return Predicted(
        run=str(run.folder),
        target=run.target,
        images=tuple(images),
        outputs=np.concatenate(rows),
        unread=tuple(unread),
    )


def thresholds_of(run: Run) -> tuple[float, ...]:
    """The probability that each of several classes needs to be said, chosen on val. Raises HeadError."""
    measured = run.metrics("val")
    if not isinstance(measured, ListMetrics):
        raise HeadError(f"the metrics of the run {run.folder} are not of several classes", hint="train again")
    return measured.thresholds


def _said(
    target: HeadTarget,
    path: str,
    row: NDArray[np.float32],
    *,
    top: int,
    thresholds: Sequence[float],
    neighbours: tuple[NearImage, ...],
) -> ImagePrediction:
    """What a head says of one image, of its outputs (C,)."""
    if target.kind == "numbers":
        values = dict(zip(target.names, row.tolist(), strict=True))
        return ImagePrediction(path=path, values=values, neighbours=neighbours)
    best = _best(target.names, row, len(row))
    if target.kind == "classes":
        return ImagePrediction(path=path, top=best[:top], neighbours=neighbours)
    enough = dict(zip(target.names, thresholds, strict=True))
    labels = tuple(guess for guess in best if guess.probability >= enough[guess.label])
    return ImagePrediction(path=path, top=best[:top], labels=labels, neighbours=neighbours)


def _best(classes: Sequence[str], probabilities: NDArray[np.float32], top: int) -> tuple[Guess, ...]:
    # Of equals the first class, as argmax has it.
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(label=classes[number], probability=float(probabilities[number])) for number in order)
