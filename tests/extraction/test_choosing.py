"""Which runner computes: the named one, the one that a cache was begun with, else the fastest of those measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Forward, every_forward, tiny_backbone, write_images

from featcache.backbones import load_backbone
from featcache.backbones.network import Network
from featcache.backbones.program import Program
from featcache.backbones.runners import choosing
from featcache.backbones.runners.choosing import Chosen, Speed, choose
from featcache.errors import InvalidOption, RunnerUnsuitable
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract

# Numbers of images for which squeezenet1_1 at 64 pixels takes seconds, minutes and hours, as `choose` estimates.
FEW, SOME, MANY = 100, 200_000, 100_000_000
SPEEDS = {
    "eager": Speed(start_s=0.0, images_per_s=10.0),
    "compiled": Speed(start_s=60.0, images_per_s=200.0),
    "openvino": Speed(start_s=2.0, images_per_s=100.0),
    "ncnn": Speed(start_s=2.0, images_per_s=50.0),
}


class RecordingReporter:
    """Records what is reported."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        self.sentences.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return squeezenet(64, tmp_path_factory.mktemp("data"))


def squeezenet(side: int, data_dir: Path) -> Network:
    return load_backbone("squeezenet1_1", weights="random:0", image_size=side, data_dir=data_dir)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runners that were measured; each is installed, and has the speed in SPEEDS."""
    names: list[str] = []

    def speed(network: Network, candidate: Chosen) -> Speed:
        names.append(candidate.runner)
        return SPEEDS[candidate.runner]

    monkeypatch.setattr(choosing, "measure_speed", speed)
    monkeypatch.setattr(choosing, "require_usable", lambda *_: None)
    monkeypatch.setattr("featcache.backbones.devices.cores", lambda: 1)
    return names


Choose = Callable[..., Chosen]


@pytest.fixture
def chosen(tmp_path: Path) -> Choose:
    def choose_runner(
        network: Network, images: int, runner: str = "auto", precision: str = "fp32", device: str = "cpu",
        reporter: RecordingReporter | None = None,
    ) -> Chosen:  # fmt: skip
        return choose(
            network,
            runner=runner,
            precision=precision,
            device=device,
            images=lambda: images,
            data_dir=tmp_path / "data",
            report=reporter or RecordingReporter(),
        )

    return choose_runner


@pytest.mark.parametrize("runner", ["eager", "compiled", "openvino", "ncnn"])
@pytest.mark.parametrize("images", [1, MANY])
def test_a_named_runner_is_used_and_nothing_is_measured(
    runner: str, images: int, network: Network, measured: list[str], chosen: Choose
) -> None:
    assert chosen(network, images, runner) == Chosen(runner=runner, precision="fp32")
    assert measured == []


def test_a_small_job_is_eager_and_nothing_is_measured(
    network: Network, measured: list[str], chosen: Choose, tmp_path: Path
) -> None:
    assert chosen(network, FEW).runner == "eager"
    assert measured == []
    assert not (tmp_path / "data" / "speeds.json").exists()


def test_the_fastest_for_so_many_images_is_chosen(network: Network, measured: list[str], chosen: Choose) -> None:
    assert chosen(network, SOME).runner == "openvino"
    # A runner with a long start is not even measured where it cannot pay off.
    assert measured == ["eager", "openvino", "ncnn"]
    assert chosen(network, MANY).runner == "compiled"
    assert measured == ["eager", "openvino", "ncnn", "compiled"]


def test_speeds_are_kept_in_one_file_and_not_measured_twice(
    network: Network, measured: list[str], chosen: Choose, tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    first = chosen(network, MANY, reporter=reporter)
    content = json.loads((tmp_path / "data" / "speeds.json").read_text())
    ((circumstances, speeds),) = content.items()
    assert "squeezenet1_1 64 (pre_logits)" in circumstances and "1 cores" in circumstances
    assert speeds["compiled fp32"] == {"start_s": 60.0, "images_per_s": 200.0}
    (sentence,) = reporter.sentences
    assert "compiled fp32 200.0 images/s" in sentence and "kept in speeds.json" in sentence
    measured.clear()
    assert chosen(squeezenet(64, tmp_path), MANY, reporter=reporter) == first
    assert (measured, len(reporter.sentences)) == ([], 1)


def test_another_size_is_measured_anew_and_the_first_is_kept(
    network: Network, measured: list[str], chosen: Choose, tmp_path: Path
) -> None:
    chosen(network, MANY)
    measured.clear()
    chosen(squeezenet(72, tmp_path), MANY)
    assert sorted(measured) == sorted(SPEEDS)
    assert len(json.loads((tmp_path / "data" / "speeds.json").read_text())) == 2


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"a": {"b": {"start_s": 1}}}', b'{"a": {"b": {"start_s": 1, "images_per_s": 0}}}']
)
def test_an_unreadable_file_of_speeds_is_measured_again(
    content: bytes, network: Network, measured: list[str], chosen: Choose, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "speeds.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert chosen(network, MANY).runner == "compiled"
    assert sorted(measured) == sorted(SPEEDS)
    assert len(json.loads(path.read_text())) == 1


def test_speeds_that_cannot_be_kept_are_a_warning(
    network: Network, measured: list[str], chosen: Choose, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    reporter = RecordingReporter()
    assert chosen(network, MANY, reporter=reporter).runner == "compiled"
    assert "measured again next time" in reporter.warnings[0]


@pytest.mark.parametrize(
    "error",
    [
        RunnerUnsuitable("compiled", "squeezenet1_1", "an operation it does not know"),
        RuntimeError("no such luck\nat 1"),
    ],
)
def test_a_runner_that_cannot_compute_the_network_is_passed_over_with_a_warning(
    error: Exception, network: Network, measured: list[str], chosen: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = choosing.measure_speed

    def speed(network: Network, candidate: Chosen) -> Speed:
        if candidate.runner == "compiled":
            raise error
        return others(network, candidate)

    monkeypatch.setattr(choosing, "measure_speed", speed)
    reporter = RecordingReporter()
    assert chosen(network, MANY, reporter=reporter).runner == "openvino"
    (warning,) = reporter.warnings
    assert "compiled" in warning and "squeezenet1_1" in warning and "trying the next runner" in warning
    assert "\n" not in warning


def test_a_runner_that_computes_other_features_is_passed_over(
    network: Network, chosen: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, started = Network.on, []

    def wrong(network: Network, device: str, precision: str, runner: str, *, batch_size: int) -> Program:
        program = on(network, device, precision, "eager", batch_size=batch_size)
        if runner == "eager":
            return program
        started.append(runner)
        return Program(
            network.spec,
            lambda batch: {name: rows.flip(1) for name, rows in program.features(batch.permute(0, 2, 3, 1)).items()},
            device=device,
            precision=precision,
            runner=runner,
        )

    monkeypatch.setattr(Network, "on", wrong)
    monkeypatch.setattr(choosing, "RUNNERS", ("eager", "openvino"))
    monkeypatch.setattr(choosing, "require_usable", lambda *_: None)
    reporter = RecordingReporter()
    assert chosen(network, MANY, reporter=reporter).runner == "eager"
    assert started == ["openvino"]
    assert "layer pre_logits has a cosine of" in reporter.warnings[0]


def test_the_eager_runner_is_always_available(
    network: Network, chosen: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it drifts, the extraction measures and reports the drift on real images."""

    def drifting(forward: Forward, images: np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: rows.flip(1) for name, rows in forward(images).items()}

    every_forward(monkeypatch, drifting)
    monkeypatch.setattr(choosing, "RUNNERS", ("eager",))
    assert chosen(network, MANY).runner == "eager"


def test_what_torch_itself_cannot_compute_is_an_error(
    network: Network, chosen: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        raise RuntimeError("no such luck")

    every_forward(monkeypatch, fails)
    monkeypatch.setattr(choosing, "RUNNERS", ("eager",))
    with pytest.raises(RuntimeError, match="no such luck"):
        chosen(network, MANY)


def test_own_modules_and_other_devices_are_eager_without_measuring(
    network: Network, measured: list[str], chosen: Choose
) -> None:
    assert chosen(tiny_backbone(), 10**15) == Chosen(runner="eager", precision="fp32")
    assert chosen(network, MANY, device="cuda") == Chosen(runner="eager", precision="fp32")
    assert measured == []


def test_pixels_are_bytes_whatever_is_requested(chosen: Choose, tmp_path: Path) -> None:
    pixels = load_backbone("pixels", image_size=8, data_dir=tmp_path)
    assert chosen(pixels, MANY, "compiled", "bf16") == Chosen(runner="eager", precision="uint8")


@pytest.mark.parametrize(
    ("runner", "device", "precision", "message"),
    [
        ("openvino", "cuda", "fp32", "--runner openvino computes on cpu, got --device cuda"),
        ("openvino", "cuda", "fp16", "--runner openvino computes on cpu, got --device cuda"),
        ("ncnn", "cpu", "bf16", "--runner ncnn computes in .*, got --precision bf16"),
    ],
)
def test_a_named_runner_that_cannot_compute_there_is_an_error(
    runner: str, device: str, precision: str, message: str, network: Network, chosen: Choose
) -> None:
    with pytest.raises(InvalidOption, match=message):
        chosen(network, 1, runner, precision, device)


def test_the_default_precision_is_one_that_the_runner_supports(
    network: Network, chosen: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "require_usable", lambda *_: None)
    monkeypatch.setattr("featcache.backbones.devices.multiplies_bf16", lambda _: True)
    assert chosen(network, 1, "openvino", "auto").precision == "bf16"
    assert chosen(network, 1, "ncnn", "auto").precision == "fp32"


def test_a_function_in_a_thread_raises_here_and_keeps_the_number_of_threads() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    choosing.run_in_thread(lambda: seen.append(torch.get_num_threads()))
    assert seen == [before]
    with pytest.raises(ZeroDivisionError):
        choosing.run_in_thread(lambda: 1 / 0)


# --- a cache determines the runner ----------------------------------------------------------------------------


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    """A request whose compiled extraction needs no C++ compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("featcache.backbones.runners.compiled.compiler", lambda: "one")
    images = write_images(tmp_path / "pictures", train=6, test=2)
    return Request(dataset=images, backbone=tiny_backbone(), precision="bf16", data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    "begun", [{"runner": "compiled"}, {"runner": "eager"}, {"precision": "fp32"}], ids=lambda begun: str(begun)
)
def test_a_cache_with_another_runner_or_precision_is_the_match_of_auto(
    begun: dict[str, str], request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(replace(request_, **begun))  # type: ignore[arg-type]
    monkeypatch.setattr(choosing, "choose", _never)
    again = extract(replace(request_, precision="auto", runner="auto"))
    assert (again.computed, again.fingerprint) == (0, first.fingerprint)


def test_an_extraction_continues_with_the_runner_it_was_begun_with(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def interrupt(forward: Forward, images: np.ndarray | torch.Tensor) -> object:
        nonlocal seen
        seen += 1
        # Forward passes before: one to compile, two of the comparison, and one batch of the other 16 images.
        if seen == 5:
            raise KeyboardInterrupt
        return forward(images)

    execution = Execution(batch_size=8, segment_rows=8)
    with monkeypatch.context() as patched:
        every_forward(patched, interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(replace(request_, runner="compiled"), execution)
    monkeypatch.setattr(choosing, "choose", _never)
    done = extract(replace(request_, precision="auto", runner="auto"), execution)
    assert (done.computed, done.reused) == (24 - 8, 8)
    monkeypatch.undo()
    assert extract(replace(request_, runner="compiled")).fingerprint == done.fingerprint


def _never(*_: object, **__: object) -> Chosen:
    raise AssertionError("a runner was chosen although a cache determines it")
