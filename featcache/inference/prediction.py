"""A run and images in, classes out.

    predicted = predict("latest", "photos/")
    predicted.images[0].label, predicted.probabilities

What a table, JSON and CSV show is the same record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.backbones.network import Network
from featcache.errors import InvalidOption, SourceError
from featcache.extraction.reporting import LogReporter, Reporter
from featcache.extraction.run import Execution
from featcache.images.samples import Sample
from featcache.inference.classifier import Answers, Classifier, Weights
from featcache.inference.nearest import NearestImages
from featcache.inference.pictures import Images, opened
from featcache.inference.records import Guess, ImagePrediction, Predicted, Unread
from featcache.runs.catalog import find_run
from featcache.runs.run import Run


def predict(
    run: Run | str | Path,
    images: Images,
    *,
    top: int = 3,
    neighbours: int = 0,
    weights: Weights = None,
    backbone: Network | None = None,
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
    a mapping by name. `backbone`: one's own, where the run's was a module. `precision`: how features are computed.
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
        nearest = stack.enter_context(closing(NearestImages(run, data_dir=Path(data_dir)))) if neighbours else None
        classifier = Classifier.of(
            run, weights=weights, backbone=backbone, data_dir=Path(data_dir), device=device, precision=precision
        )
        answers = _accepted(classifier.answers(source, samples, how), how, reporter, len(samples))
        return _predicted(run, samples, answers, top, neighbours, nearest)


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
    rows = [np.empty((0, len(run.classes)), np.float32)]
    unread: list[Unread] = []
    for answer in answers:
        near = [()] * len(answer.index) if nearest is None else nearest.find(answer.features, neighbours)
        names = [samples[row].id for row in answer.index]
        images += [
            ImagePrediction(path=name, top=_best(run.classes, row, top), neighbours=found)
            for name, row, found in zip(names, answer.probabilities, near, strict=True)
        ]
        rows.append(answer.probabilities)
        unread += [Unread(path=samples[one.image].id, reason=one.error.message) for one in answer.failures]
    if not images:
        raise SourceError(f"none of {len(samples)} images could be read: {unread[0].reason}")
    return Predicted(
        run=str(run.folder),
        classes=run.classes,
        images=tuple(images),
        probabilities=np.concatenate(rows),
        unread=tuple(unread),
    )


def _best(classes: Sequence[str], probabilities: NDArray[np.float32], top: int) -> tuple[Guess, ...]:
    # Of equals the first class, as argmax has it.
    order = np.argsort(-probabilities, kind="stable")[:top]
    return tuple(Guess(label=classes[number], probability=float(probabilities[number])) for number in order)
