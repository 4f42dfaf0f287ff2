"""Batch size and decoding threads: found while rows are computed, remembered for the machine, never seen in a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_backbone, write_images

from featcache.backbones.backbone import Backbone
from featcache.extraction import tuning, tuning_memory
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract
from featcache.extraction.tuning import Tuned, Tuner
from featcache.extraction.tuning_memory import memory_path, recall, remember


@dataclass(kw_only=True)
class Machine:
    """A machine whose speeds are known: `computing` (batch size -> images/s), `decoding` images/s of one thread.

    More threads than `helping` do not decode faster; each thread beyond the first takes `stolen` of the computing.
    """

    computing: Callable[[int], float]
    decoding: float
    helping: int = 4
    stolen: float = 0.0
    memory: int = 1 << 20

    def run(self, tuner: Tuner, batches: int = 400) -> Tuned | None:
        """What `tuner` finds on this machine."""
        for _ in range(batches):
            size = min(tuner.next_size(), self.memory)
            computed_s = size / (self.computing(size) * (1 - self.stolen * (tuner.workers - 1)))
            decoded_s = size / (self.decoding * min(tuner.workers, self.helping))
            tuner.timed(size, waited_s=max(0.0, decoded_s - computed_s), computed_s=computed_s, most=self.memory)
            if (found := tuner.news()) is not None:
                return found
        return None


def a_tuner(**changes: object) -> Tuner:
    values = {"sizes": (16, 32, 64), "usual": 32, "workers": 1, "most_workers": 4}
    return Tuner(**{**values, **changes})  # type: ignore[arg-type]


def test_the_fastest_size_is_taken_where_it_is_clearly_faster() -> None:
    assert Machine(computing=lambda size: size / 4, decoding=1e6).run(a_tuner()) == Tuned(batch_size=64, workers=1)
    assert Machine(computing=lambda size: 900 / size, decoding=1e6).run(a_tuner()) == Tuned(batch_size=16, workers=1)
    hardly = {16: 10.0, 32: 10.0, 64: 10.2}
    assert Machine(computing=hardly.__getitem__, decoding=1e6).run(a_tuner()) == Tuned(batch_size=32, workers=1)


def test_what_does_not_fit_into_memory_is_not_taken() -> None:
    small = Machine(computing=lambda size: float(size), decoding=1e6, memory=32)
    assert small.run(a_tuner()) == Tuned(batch_size=32, workers=1)
    assert replace(small, memory=8).run(a_tuner()) == Tuned(batch_size=8, workers=1)


def test_a_forward_pass_that_never_waits_keeps_one_decoding_thread() -> None:
    found = Machine(computing=lambda _: 10.0, decoding=2000.0, stolen=0.1).run(a_tuner())
    assert found == Tuned(batch_size=32, workers=1)


def test_threads_are_added_while_they_help() -> None:
    starving = Machine(computing=lambda _: 1000.0, decoding=300.0)
    assert starving.run(a_tuner()) == Tuned(batch_size=32, workers=4)
    assert replace(starving, helping=2).run(a_tuner()) == Tuned(batch_size=32, workers=2)
    assert replace(starving, decoding=600.0).run(a_tuner()) == Tuned(batch_size=32, workers=2)
    assert starving.run(a_tuner(most_workers=1)) == Tuned(batch_size=32, workers=1)


def test_few_images_are_not_spent_on_trials() -> None:
    tuner = a_tuner()
    tuner.limit_to(2 * 112 * 4 - 1)
    assert [tuner.next_size() for _ in range(5)] == [32] * 5
    tuner = a_tuner()
    tuner.limit_to(2 * 112 * 4)
    assert [tuner.next_size() for _ in range(7)] == [16, 16, 32, 32, 64, 64, 32]


def test_what_was_said_is_not_remembered() -> None:
    assert Machine(computing=lambda _: 10.0, decoding=2000.0).run(a_tuner(learns=False)) is None


# --- the memory --------------------------------------------------------------------------------------------

FOUND = Tuned(batch_size=64, workers=3)


def no_warning(text: str) -> None:
    raise AssertionError(text)


@given(found=st.dictionaries(st.text(max_size=20), st.builds(Tuned, batch_size=st.integers(1, 4096),
                                                             workers=st.integers(1, 64)), max_size=4))  # fmt: skip
def test_what_was_remembered_is_recalled(found: dict[str, Tuned], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("memory")
    for key, one in found.items():
        remember(folder, key, one, no_warning)
    assert {key: recall(folder, key, no_warning) for key in found} == found
    assert recall(folder, "somewhere else entirely", no_warning) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": "another", "found": {}}', '{"format": "featcache-tuning-1"}',
     '{"format": "featcache-tuning-1", "found": {"here": {"batch_size": 0, "workers": 1}}}',
     '{"format": "featcache-tuning-1", "found": {"here": {"batch_size": "64", "workers": 1}}}',
     '{"format": "featcache-tuning-1", "found": {"here": {"batch_size": 64}}}'],
)  # fmt: skip
def test_a_damaged_memory_is_said_and_replaced(content: str, tmp_path: Path) -> None:
    memory_path(tmp_path).write_text(content)
    warnings: list[str] = []
    assert recall(tmp_path, "here", warnings.append) is None
    assert len(warnings) == 1
    assert "tuning.json cannot be read" in warnings[0]
    remember(tmp_path, "here", FOUND, warnings.append)
    assert recall(tmp_path, "here", no_warning) == FOUND


def test_a_folder_that_cannot_be_written_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    warnings: list[str] = []
    remember(tmp_path / "file", "here", FOUND, warnings.append)
    assert any("found anew the next time" in warning for warning in warnings)


# --- an extraction -----------------------------------------------------------------------------------------


@pytest.fixture
def eager_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and windows so small that a few hundred images are enough."""
    monkeypatch.setattr(tuning_memory, "_SIZES", {"cpu": (8, 16, 64)})
    monkeypatch.setattr(tuning, "_TRIALS_TO_REST", 1)
    monkeypatch.setattr(tuning, "_WINDOW_S", 0.0)
    monkeypatch.setattr(tuning, "_WINDOW_BATCHES", 1)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=90, test=30)
    return Request(dataset=images, backbone=tiny_backbone(), precision="fp32", data_dir=tmp_path / "data")


def rows(cache: Path) -> bytes:
    with h5py.File(cache) as file:
        return bytes(np.asarray(file["train/features/output"]).tobytes())


def batches(backbone: Backbone | str) -> list[int]:
    assert isinstance(backbone, Backbone)
    sizes: list[int] = []
    original = backbone.features

    def noted(images: np.ndarray) -> object:
        sizes.append(len(images))
        return original(images)

    backbone.features = noted  # type: ignore[method-assign, assignment]
    return sizes


@pytest.mark.usefixtures("eager_tuning")
def test_an_extraction_tunes_itself_once_and_its_rows_do_not_show_it(request_: Request, tmp_path: Path) -> None:
    sizes = batches(request_.backbone)
    first = extract(request_)
    assert sizes[:6] == [8, 8, 16, 16, 64, 64]
    assert first.computed == 360
    (found,) = json.loads(memory_path(request_.data_dir).read_text())["found"].values()
    assert found["batch_size"] in (8, 16, 32, 64)
    plain = extract(replace(request_, data_dir=tmp_path / "plain"), Execution(batch_size=32, workers=2))
    assert rows(plain.cache) == rows(first.cache)
    assert not memory_path(tmp_path / "plain").exists()
    # The next one begins with what was found.
    expected = rows(first.cache)
    first.cache.unlink()
    sizes.clear()
    again = extract(request_)
    assert set(sizes[:4]) == {found["batch_size"]}
    assert rows(again.cache) == expected
    # What is said goes before what is remembered.
    again.cache.unlink()
    sizes.clear()
    extract(request_, Execution(batch_size=128))
    assert sizes[0] == 128


@pytest.mark.usefixtures("eager_tuning")
def test_memory_that_gives_out_during_the_trials_halves_the_batch(request_: Request, tmp_path: Path) -> None:
    import torch

    assert isinstance(request_.backbone, Backbone)
    original = request_.backbone.features

    def narrow(images: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        if len(images) > 16:
            raise torch.OutOfMemoryError("out of memory")
        return original(images)

    request_.backbone.features = narrow  # type: ignore[method-assign]
    done = extract(request_)
    assert done.computed == 360
    (found,) = json.loads(memory_path(request_.data_dir).read_text())["found"].values()
    assert found["batch_size"] <= 16
    plain = extract(replace(request_, backbone=tiny_backbone(), data_dir=tmp_path / "plain"))
    assert rows(plain.cache) == rows(done.cache)
