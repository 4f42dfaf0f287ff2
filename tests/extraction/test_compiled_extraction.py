"""Extraction with torch's compiler: the runner is part of a cache's identity, and the features are the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_backbone, write_images
from torch._dynamo.testing import CompileCounter

from featcache.backbones.runners.compiled import compiler
from featcache.cache.reader import FeatureCache
from featcache.errors import ExtractionError, InvalidOption
from featcache.extraction.recomputation import recompute
from featcache.extraction.request import Request
from featcache.extraction.run import Execution, extract

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    images = write_images(tmp_path / "pictures", train=10, test=4)
    return Request(dataset=images, backbone=tiny_backbone(), precision="bf16", data_dir=tmp_path / "data")


@needs_compiler
def test_compiled_features_are_the_same_and_one_program_serves_all_batches(request_: Request, tmp_path: Path) -> None:
    plain = extract(replace(request_, runner="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    done = extract(replace(request_, runner="compiled"), Execution(batch_size=16, segment_rows=16))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert done.fingerprint != plain.fingerprint
    assert done.drift is not None
    with FeatureCache.open(plain.cache) as eager, FeatureCache.open(done.cache) as compiled:
        assert compiled.spec.runner == "compiled"
        assert np.allclose(compiled["train"].features[:], eager["train"].features[:], rtol=0.02, atol=1e-3)
    # `auto` takes the runner of the cache, and on a hit nothing is compiled.
    plain.cache.unlink()
    again = extract(request_)
    assert (again.computed, again.fingerprint) == (0, done.fingerprint)
    assert again.cache == done.cache


@needs_compiler
def test_extractions_of_one_process_are_all_compiled_and_each_once(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, dynamic=False, backend=counter))
    # Torch keeps at most eight programs per function. Three segments, the last batch is short; drift is in fp32.
    for number in range(1, 11):
        request = replace(request_, backbone=tiny_backbone(), runner="compiled", data_dir=tmp_path / str(number))
        assert extract(request, Execution(batch_size=16, segment_rows=16)).computed == 42
        assert counter.frame_count == number


def test_a_network_that_cannot_be_compiled_is_an_error_with_a_hint(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> object:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(ExtractionError, match="tiny cannot be compiled: no such luck") as caught:
        extract(replace(request_, runner="compiled"))
    assert caught.value.hint == "extract with --runner eager"
    assert not list(request_.features_dir.glob("*/manifest.json"))


def test_few_images_take_their_rows_from_a_large_compiled_cache(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    large = extract(replace(request_, backbone=tiny_backbone(), runner="compiled"))
    few = extract(replace(request_, limit=3))
    assert (few.computed, few.fingerprint) == (0, large.fingerprint)


def test_without_a_compiler_it_is_refused_before_anything_is_done(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InvalidOption, match="needs a C\\+\\+ compiler"):
        extract(replace(request_, runner="compiled"))
    assert not request_.features_dir.exists() or not list(request_.features_dir.iterdir())


def test_the_suggested_command_contains_the_runner(request_: Request) -> None:
    for runner in ("eager", "compiled", "openvino", "ncnn"):
        assert f"--runner {runner}" in replace(request_, runner=runner).command
    assert "--runner" not in request_.command


@needs_compiler
def test_rows_of_a_compiled_cache_are_the_same_when_computed_again(request_: Request) -> None:
    request = replace(request_, backbone="alexnet", weights="random:0", image_size=64, runner="compiled")
    done = extract(request)
    with FeatureCache.open(done.cache) as cache:
        assert cache.spec.runner == "compiled"
        again = recompute(cache, 12, seed=0, data_dir=request.data_dir, device="cpu")
    assert (again.rows, again.equal) == (12, 12)
