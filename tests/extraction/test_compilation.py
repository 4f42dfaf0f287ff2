"""Compiled: decided by the number of images, part of a cache's identity, and the same features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TinyNetwork, tiny_backbone, write_images
from torch._dynamo.testing import CompileCounter

from featcache.backbones import load_backbone, openvino_runner
from featcache.backbones.backbone import Backbone
from featcache.backbones.network import from_module
from featcache.backbones.transforms import Transform
from featcache.cache.reader import FeatureCache
from featcache.errors import CacheNotFound, ExtractionError
from featcache.extraction import compilation, matching
from featcache.extraction.compilation import break_even, resolve_runner
from featcache.extraction.rebuild import recompute
from featcache.extraction.reporting import LogReporter
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract

needs_compiler = pytest.mark.skipif(compilation.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=10, test=4)
    return Request(dataset=images, backbone=tiny_backbone(), precision="bf16", data_dir=tmp_path / "data")


@needs_compiler
def test_compiled_features_are_the_same_and_one_program_serves_all_batches(request_: Request, tmp_path: Path) -> None:
    plain = extract(replace(request_, runner="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    done = extract(replace(request_, runner="compiled"), Execution(batch_size=16, part_rows=16))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert done.fingerprint != plain.fingerprint
    assert done.drift is not None
    with FeatureCache.open(plain.cache) as eager, FeatureCache.open(done.cache) as compiled:
        assert compiled.spec.runner == "compiled"
        assert np.allclose(compiled["train"].features[:], eager["train"].features[:], rtol=0.02, atol=1e-3)
    # What was settled once is obeyed, and on a hit nothing is compiled.
    plain.cache.unlink()
    again = extract(request_)
    assert (again.computed, again.fingerprint) == (0, done.fingerprint)
    assert matching.by_request(request_).path == done.cache
    with pytest.raises(CacheNotFound):
        matching.by_request(replace(request_, runner="eager"))


@needs_compiler
def test_extractions_of_one_process_are_all_compiled_and_each_once(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, dynamic=False, backend=counter))
    # Torch keeps eight programs for a function. Three parts, the last batch short; the drift is measured in fp32.
    for number in range(1, 11):
        request = replace(request_, backbone=tiny_backbone(), runner="compiled", data_dir=tmp_path / str(number))
        assert extract(request, Execution(batch_size=16, part_rows=16)).computed == 42
        assert counter.frame_count == number


def test_what_cannot_be_compiled_says_the_way_out(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> object:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(ExtractionError, match="tiny cannot be compiled: no such luck") as told:
        extract(replace(request_, backbone=from_module(TinyNetwork(), name="tiny", transform=Transform(image_size=16)),
                        runner="compiled"))  # fmt: skip
    assert told.value.hint == "extract with --runner eager"
    assert not list(request_.features_dir.glob("*.parts"))


def test_few_images_take_their_rows_from_a_large_compiled_cache(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    large = extract(replace(request_, backbone=tiny_backbone(), runner="compiled"))
    few = extract(replace(request_, limit=3))
    assert (few.computed, few.fingerprint) == (0, large.fingerprint)


def resolved(said: str, backbone: Backbone, images: int, device: str = "cpu") -> str:
    return resolve_runner(
        said, backbone, device=device, precision="bf16", images=lambda: images, reporter=LogReporter()
    )


@pytest.fixture(scope="module")
def network() -> Backbone:
    return load_backbone("squeezenet1_1", weights="random:0", image_size=64, weights_dir=Path())


@needs_compiler
def test_auto_compiles_from_the_break_even_on(network: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runner, "installed", lambda: False)
    enough = break_even("compiled", network, "bf16")
    assert enough > 1000
    assert [resolved("auto", network, images) for images in (enough - 1, enough)] == ["eager", "compiled"]
    assert resolved("eager", network, enough) == "eager"
    assert resolved("compiled", network, 1) == "compiled"
    # Not measured there.
    assert resolved("auto", network, enough, "cuda") == "eager"


def test_ones_own_module_is_compiled_only_when_asked() -> None:
    assert resolved("auto", tiny_backbone(), 10**12) == "eager"


def test_without_a_compiler_it_is_eager_and_said_loudly(
    network: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert resolved("compiled", network, 1) == "eager"
    assert "there is no C++ compiler" in caplog.text


def test_the_command_offered_says_what_was_said(request_: Request) -> None:
    for runner in ("eager", "compiled", "openvino"):
        assert f"--runner {runner}" in matching.as_command(replace(request_, runner=runner))
    assert "--runner" not in matching.as_command(request_)


@needs_compiler
def test_rows_of_a_compiled_cache_are_the_same_when_computed_again(request_: Request) -> None:
    request = replace(request_, backbone="alexnet", weights="random:0", image_size=64, runner="compiled")
    done = extract(request)
    with FeatureCache.open(done.cache) as cache:
        assert cache.spec.runner == "compiled"
        again = recompute(cache, 12, seed=0, data_dir=request.data_dir, device="cpu")
    assert (again.rows, again.equal) == (12, 12)


def test_what_is_done_beside_raises_here_and_keeps_the_threads() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    compilation.beside(lambda: seen.append(torch.get_num_threads()))
    assert seen == [before]
    with pytest.raises(ZeroDivisionError):
        compilation.beside(lambda: 1 / 0)
