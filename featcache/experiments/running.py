"""`featcache.run_experiment`: runs what an experiment file describes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache.reader import FeatureCache
from featcache.display import Shown, Summary
from featcache.experiments.reading import Experiment, read_experiment
from featcache.extraction.execution import Execution
from featcache.extraction.reporting import ProgressReporter, Reporter
from featcache.extraction.request import Request
from featcache.extraction.result import Extraction
from featcache.extraction.run import extract_each
from featcache.heads.config import HeadConfig
from featcache.progress import StageProgress
from featcache.runs.experiment_file import expectations
from featcache.runs.files import REPORT_FILE
from featcache.runs.fit import RUNS_DIR, epoch_progress, train_head
from featcache.runs.run import Run
from featcache.sweeps.records import Sweep

if TYPE_CHECKING:
    from featcache.report import WrittenReport


@dataclass(frozen=True, kw_only=True, repr=False)
class ExperimentResult(Shown):
    """The result of an experiment.

    Attributes:
        file: The experiment file.
        caches: What was extracted for each cache.
        sweep: The sweep; None if a single head was trained.
        run: The run of the head, of a sweep that of the chosen head; None if Ctrl-C came before it was written.
        report: The report; None if Ctrl-C ended the training.
    """

    file: Path
    caches: tuple[Extraction, ...]
    sweep: Sweep | None
    run: Run | None
    report: WrittenReport | None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the training."""
        return self.report is None

    def to_json(self) -> dict[str, Any]:
        """The one JSON object of `featcache run --json`."""
        return {
            "caches": [one.to_json() for one in self.caches],
            "sweep": None if self.sweep is None else self.sweep.to_json(),
            "run": None if self.run is None else self.run.to_json(),
            "report": None if self.report is None else self.report.to_json(),
        }

    def summary(self) -> Summary:
        """What a prompt and a notebook show: the scores, and where the results are."""
        run = Summary() if self.run is None else self.run.summary()
        computed, reused = (sum(getattr(one, name) for one in self.caches) for name in ("computed", "reused"))
        return Summary(
            title=run.title,
            about=run.about,
            facts=[
                ("images computed", computed),
                ("reused", reused),
                *run.facts,
                *([] if self.sweep is None else [("sweep", self.sweep.folder)]),
                *([] if self.report is None else [("report", self.report.path)]),
            ],
            tables=run.tables if self.sweep is None else self.sweep.summary().tables,
            notes=run.notes,
        )


def run_experiment(
    file: str | Path,
    *,
    data_dir: str | Path = "data",
    runs_dir: str | Path = RUNS_DIR,
    progress: StageProgress | bool | None = None,
    reporter: Reporter | None = None,
) -> ExperimentResult:
    """Run what an experiment file describes: extract, train a head or sweep over many, and report.

    Features that exist are not computed again. Every run contains such a file, `experiment.toml`, which repeats it.

    Args:
        file: The TOML file. Relative paths in it are relative to its folder.
        data_dir: The folder of data sets, weights and caches.
        runs_dir: The folder that holds runs.
        progress: None or True: a progress bar, in a terminal or a notebook. False: no bar. Or a function, called with
            (stage, steps done, steps in all).
        reporter: Receives messages and progress, in place of the logger "featcache" and of `progress`.

    Returns:
        What was extracted, the run or the sweep, and the report.

    Raises:
        InvalidOption: The file is missing or is not TOML, or a table or an option is unknown or has a wrong value.
        FeatcacheError: What `extract`, `train_head`, `sweep` and `write_report` raise.
    """
    experiment = read_experiment(file, data_dir=data_dir)
    with ProgressReporter(progress) as bar:
        return _carry_out(experiment, Path(data_dir), Path(runs_dir), reporter or bar)


def _carry_out(experiment: Experiment, data_dir: Path, runs_dir: Path, reporter: Reporter) -> ExperimentResult:
    done = _extract((*experiment.requests, *experiment.beside), experiment.execution, reporter)
    paths = [one.cache for one in done]
    _compare(experiment, paths, reporter)
    caches, beside = paths[: len(experiment.requests)], paths[len(experiment.requests) :]
    training: dict[str, Any] = {
        "beside": beside,
        "runs_dir": runs_dir,
        "report": reporter.info,
        **experiment.head,
        **experiment.training,
    }
    sweep, run = None, None
    if experiment.sweep is None:
        run = train_head(caches[0], progress=epoch_progress(None, reporter.advance), **training)
        interrupted = run.training.interrupted
    else:
        sweep = _sweep(caches, experiment, training, reporter)
        run = None if sweep.run is None else Run.load(sweep.run)
        interrupted = sweep.interrupted or run is None
    report = None if interrupted else _report(experiment, sweep or run, data_dir, reporter)
    return ExperimentResult(file=experiment.file, caches=done, sweep=sweep, run=run, report=report)


def _extract(requests: Sequence[Request], execution: Execution, reporter: Reporter) -> tuple[Extraction, ...]:
    """Extract all. One pass over the images has different backbones: one with two image sizes needs two passes."""
    found: dict[Request, Extraction] = {}
    while left := [one for one in requests if one not in found]:
        several: dict[str, Request] = {}
        for one in left:
            several.setdefault(one.backbone_name, one)
        done = extract_each([*several.values()], execution, reporter=reporter)
        found |= dict(zip(several.values(), done, strict=True))
    return tuple(found[one] for one in requests)


def _compare(experiment: Experiment, paths: Sequence[Path], reporter: Reporter) -> None:
    """Warn where features, images or targets are not those that the file expects."""
    if not experiment.expected:
        return
    options = HeadConfig.of({name: experiment.head[name] for name in ("target", "group") if name in experiment.head})
    with ExitStack() as held:
        found = expectations([held.enter_context(FeatureCache.open(path)) for path in paths], options)
    words = {
        "fingerprints": "the features are computed in another way (other weights, or another version)",
        "images": "the images are others",
        "targets": "the labels, other targets or groups are others",
    }
    for name, what in words.items():
        if name in experiment.expected and experiment.expected[name] != found[name]:
            reporter.warn(f"{what} than when {experiment.file} was written, so the results will differ")


def _sweep(caches: Sequence[Path], experiment: Experiment, training: dict[str, Any], reporter: Reporter) -> Sweep:
    from featcache.sweeps.api import sweep

    return sweep(
        caches,
        grid=experiment.grid,
        progress=lambda epochs, total: reporter.advance("sweeping", epochs, total),
        **training,
        **(experiment.sweep or {}),
    )


def _report(experiment: Experiment, of: Run | Sweep | None, data_dir: Path, reporter: Reporter) -> WrittenReport:
    from featcache.report import write_report

    assert of is not None
    path = experiment.output or of.folder / REPORT_FILE
    options = experiment.report.contents
    written = write_report(of, path, **options, data_dir=data_dir, progress=reporter.advance)
    for note in written.notes:
        reporter.info(note)
    return written
