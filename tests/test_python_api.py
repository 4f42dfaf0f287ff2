"""What Python users meet: errors with hints, the version, public names, a cache as a mapping, progress bars."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import io
import logging
import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from head_caches import blobs, write_cache

import featcache
from featcache.analysis import audit_cache
from featcache.cache.reader import CachedSplit, FeatureCache
from featcache.errors import FeatcacheError, InvalidOption, RunnerUnsuitable, UnknownKey, UnknownName
from featcache.inference import export_cache
from featcache.progress import ProgressBar, TerminalScreen, call_bar

# --- errors ------------------------------------------------------------------------------------------------


def trace_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_traceback_shows_the_hint() -> None:
    error = FeatcacheError("the disk is full", hint="free some space")
    assert error.__notes__ == ["hint: free some space"]
    assert trace_of(error).endswith("FeatcacheError: the disk is full\nhint: free some space\n")
    assert str(error) == "the disk is full"


def test_an_error_without_a_hint_has_no_note() -> None:
    assert trace_of(FeatcacheError("the disk is full")).endswith("FeatcacheError: the disk is full\n")


def test_a_hint_that_is_set_later_replaces_the_note() -> None:
    error = FeatcacheError("no such set", hint="first")
    error.add_note("while listing")
    error.hint = "second"
    assert error.__notes__ == ["while listing", "hint: second"]
    error.hint = None
    assert error.__notes__ == ["while listing"]


@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    "error",
    [
        FeatcacheError("full", hint="free some space"),
        FeatcacheError("full"),
        RunnerUnsuitable("ncnn", "vgg16", "no Winograd"),
        UnknownName("layer", "avgpol", ["avgpool"]),
        UnknownKey("split", "tran", ["train"]),
    ],
    ids=str,
)
def test_a_copied_error_has_its_hint_once(error: FeatcacheError, copied: Callable[[Any], Any]) -> None:
    error = copy.deepcopy(error)
    error.add_note("in worker 3")
    again = copied(copied(error))
    assert type(again) is type(error)
    assert (str(again), again.message, again.hint) == (str(error), error.message, error.hint)
    assert again.__notes__ == error.__notes__
    assert vars(again) == vars(error)


# --- names -------------------------------------------------------------------------------------------------


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    assert dir(featcache) == sorted([*featcache.__all__, "__version__"])


def test_the_version_is_that_of_the_installed_package() -> None:
    assert featcache.__version__ == importlib.metadata.version("featcache")


def test_the_version_is_known_without_heavy_imports() -> None:
    heavy = ("torch", "numpy", "h5py", "rich", "typer")
    code = f"import featcache, sys; featcache.__version__; dir(featcache); print({{*{heavy!r}}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_importing_the_package_does_not_import_what_only_a_version_needs() -> None:
    code = "import sys; before = set(sys.modules); import featcache; print(sorted(set(sys.modules) - before))"
    root = Path(featcache.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "importlib.metadata" not in ran.stdout


def test_images_and_backbone_have_the_same_defaults_everywhere() -> None:
    def default(function: Callable[..., Any], name: str) -> Any:
        return inspect.signature(function).parameters[name].default

    assert default(featcache.open_images, "images") == default(featcache.extract, "images") == "cifar10"
    assert default(featcache.load_backbone, "name") == default(featcache.extract, "backbone") == "vgg16"
    for function in (featcache.open_images, featcache.load_backbone):
        inspect.signature(function).bind()


# --- a cache as a mapping ----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    splits = {"train": blobs(24, seed=0), "val": blobs(9, seed=1), "test": blobs(9, seed=2)}
    with write_cache(tmp_path, splits) as opened:
        yield opened


def test_a_cache_is_a_mapping_from_split_names_to_splits(cache: FeatureCache) -> None:
    assert isinstance(cache, Mapping)
    assert list(cache) == list(cache.keys()) == ["train", "val", "test"]
    assert len(cache) == 3
    assert {name: len(split) for name, split in cache.items()} == {"train": 24, "val": 9, "test": 9}
    assert all(isinstance(split, CachedSplit) for split in cache.values())
    assert cache.get("val") is cache["val"]


def test_a_split_that_is_absent_raises_a_key_error_with_the_nearest_names(cache: FeatureCache) -> None:
    with pytest.raises(KeyError) as caught:
        cache["tran"]
    error = caught.value
    assert isinstance(error, UnknownName)
    assert str(error) == error.message == "unknown split 'tran'"
    assert error.hint == "did you mean train?"
    assert cache.get("tran") is None
    assert cache.get("tran", 1) == 1
    assert "tran" not in cache


def test_what_is_no_name_is_in_no_cache(cache: FeatureCache) -> None:
    numbered: Any = cache
    assert 0 not in numbered
    assert numbered.get(0) is None
    with pytest.raises(KeyError, match="unknown split '0'"):
        numbered[0]


def test_two_open_caches_of_one_file_are_different_objects(cache: FeatureCache) -> None:
    with FeatureCache.open(cache.path) as other:
        assert cache != other
        assert cache == cache
        assert cache != dict(cache)
        assert len({cache, other, cache}) == 2


# --- progress ----------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A stderr that is a terminal, or is none."""

    def __init__(self, *, terminal: bool = True) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        """Everything written so far, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


class Notebook:
    """A kernel of IPython: remembers the text that each cell output showed, one list for each output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outputs: list[list[str]] = []
        shell = type("Shell", (type("ZMQInteractiveShell", (), {}),), {})()
        package, display = ModuleType("IPython"), ModuleType("IPython.display")
        vars(package).update(get_ipython=lambda: shell)
        vars(display).update(display=self._display)
        monkeypatch.setitem(sys.modules, "IPython", package)
        monkeypatch.setitem(sys.modules, "IPython.display", display)

    def _display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw
        assert display_id
        shown = [content["text/plain"]]
        self.outputs.append(shown)
        return SimpleNamespace(update=lambda content, raw: shown.append(content["text/plain"]))


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short stages get a bar too, and every change of it is shown."""
    monkeypatch.setattr("featcache.progress._SHORTEST_S", -1.0)
    monkeypatch.setattr("featcache.progress._NOTEBOOK_INTERVAL_S", 0.0)


def use_stderr(monkeypatch: pytest.MonkeyPatch, stream: Screen | None) -> Any:
    """Make a stream the stderr of progress bars. pytest replaces sys.stderr itself between fixtures and tests."""
    monkeypatch.setattr("featcache.progress.sys", SimpleNamespace(stderr=stream, modules=sys.modules))
    return stream


@pytest.fixture
def terminal(impatient: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    return use_stderr(monkeypatch, Screen())


@pytest.fixture
def notebook(impatient: None, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    return Notebook(monkeypatch)


class Calls:
    """The long public functions on something small; each returns when its call is done."""

    def __init__(self, cache: FeatureCache, folder: Path) -> None:
        self._cache, self._folder = cache, folder

    def extract(self, **options: Any) -> None:
        self._extract("data", **options).close()

    def train_head(self, **options: Any) -> None:
        featcache.train_head(self._cache, "linear", max_epochs=3, runs_dir=self._folder / "runs", **options)

    def sweep(self, **options: Any) -> None:
        grid: Any = {"weight_decay": [0, 1e-3]}
        featcache.sweep(self._cache, "linear", grid=grid, max_epochs=3, runs_dir=self._folder / "runs", **options)

    def predict(self, **options: Any) -> None:
        data = self._folder / "predict"
        with self._extract("predict", progress=False) as cache:
            run = featcache.train_head(cache, "ridge", runs_dir=data / "runs", progress=False)
        featcache.predict(run, list(pictures(4)), data_dir=data, **options)

    def label(self, **options: Any) -> None:
        table = self._folder / "ages.csv"
        lines = [f"{name},{number}" for number, name in enumerate(self._cache["train"].ids)]
        table.write_text("\n".join(["id,age", *lines]))
        featcache.label(self._cache, table, **options)

    def export_cache(self, **options: Any) -> None:
        export_cache(self._cache, self._folder / "rows.npz", "npz", **options)

    def audit_cache(self, **options: Any) -> None:
        audit_cache(self._cache, **options)

    def _extract(self, folder: str, **options: Any) -> FeatureCache:
        images = {"train": (pictures(9), [0, 1, 2] * 3), "val": (pictures(6, 1), [0, 1, 2] * 2)}
        return featcache.extract(images, "pixels", image_size=4, data_dir=self._folder / folder, **options)


def pictures(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


STAGES = {
    "extract": "extracting",
    "train_head": "training",
    "sweep": "sweeping",
    "predict": "predicting",
    "label": "packing",
    "export_cache": "exporting",
    "audit_cache": "reading",
}
LONG = pytest.mark.parametrize("function", STAGES)


@pytest.fixture
def calls(cache: FeatureCache, tmp_path: Path) -> Calls:
    return Calls(cache, tmp_path)


@LONG
def test_a_terminal_shows_a_bar_by_default(calls: Calls, terminal: Screen, function: str) -> None:
    getattr(calls, function)()
    assert STAGES[function] in terminal.text()
    assert "━" in terminal.text()


@LONG
def test_a_notebook_shows_a_bar_by_default(calls: Calls, notebook: Notebook, function: str) -> None:
    getattr(calls, function)()
    assert any(STAGES[function] in text for output in notebook.outputs for text in output)


@LONG
@pytest.mark.parametrize("progress", [False, lambda *_: None], ids=["False", "a function"])
def test_false_or_a_function_replaces_the_bar(
    calls: Calls, terminal: Screen, notebook: Notebook, function: str, progress: Any
) -> None:
    getattr(calls, function)(progress=progress)
    assert terminal.text() == ""
    assert notebook.outputs == []


@LONG
def test_a_file_as_stderr_gets_no_bar(
    calls: Calls, impatient: None, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = use_stderr(monkeypatch, Screen(terminal=False))
    getattr(calls, function)(progress=True)
    assert screen.text() == ""


@pytest.mark.parametrize(
    ("function", "values"), [(name, {"train_head": 1, "sweep": 2}.get(name, 3)) for name in STAGES]
)
def test_a_function_is_called_with_the_progress(calls: Calls, function: str, values: int) -> None:
    seen: list[tuple[Any, ...]] = []
    getattr(calls, function)(progress=lambda *progress: seen.append(progress))
    assert seen
    assert {len(progress) for progress in seen} == {values}


@LONG
def test_other_values_of_progress_are_refused(calls: Calls, function: str) -> None:
    with pytest.raises(InvalidOption, match="expected progress to be True, False or a function, got 'bar'"):
        getattr(calls, function)(progress="bar")


def test_a_bar_ends_when_a_call_fails(terminal: Screen) -> None:
    with pytest.raises(KeyboardInterrupt), call_bar(None) as bar:
        bar.advance("training", 1, 10)
        raise KeyboardInterrupt
    hidden, shown = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


def test_a_notebook_has_one_output_for_each_stage_and_keeps_its_last_numbers(notebook: Notebook) -> None:
    with call_bar(None) as bar:
        for stage in ("reading", "extracting"):
            for done in range(4):
                bar.advance(stage, done, 3)
    assert len(notebook.outputs) == 2
    for stage, output in zip(("reading", "extracting"), notebook.outputs, strict=True):
        assert all(text.startswith(stage) and "\x1b" not in text and "\n" not in text for text in output)
        assert "3/3" in output[-1]


def test_a_notebook_is_not_flooded_with_changes(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.progress._NOTEBOOK_INTERVAL_S", 3600.0)
    with call_bar(None) as bar:
        for done in range(1000):
            bar.advance("extracting", done, 1000)
    assert [len(output) for output in notebook.outputs] == [2]
    assert "999/1000" in notebook.outputs[0][-1]


def test_a_shell_in_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch, terminal: Screen) -> None:
    shell = type("TerminalInteractiveShell", (), {})()
    package = ModuleType("IPython")
    vars(package).update(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", package)
    with call_bar(None) as bar:
        bar.advance("training", 1, 10)
    assert "training" in terminal.text()


def test_without_a_stderr_there_is_no_bar(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stderr(monkeypatch, None)
    with call_bar(True) as bar:
        bar.advance("training", 1, 10)


def test_warnings_of_a_call_stand_above_the_bar(terminal: Screen) -> None:
    handler = logging.StreamHandler()
    with ProgressBar(TerminalScreen(terminal)) as bar:
        bar.advance("extracting", 1, 10)
        handler.setStream(sys.stderr)
        handler.emit(logging.makeLogRecord({"msg": "one image was left out"}))
    assert "one image was left out\n" in terminal.text()


def test_rich_is_imported_for_a_bar_that_is_drawn_and_for_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom featcache.progress import call_bar\n"
        "sys.stderr.isatty = lambda: True\n"
        "with call_bar(None) as bar:\n"
        "    bar.advance('training', 1, 10)\n"
        "print('rich' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
