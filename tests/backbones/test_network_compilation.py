"""A network is compiled once per batch size, regardless of other devices and of earlier networks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backbone_contract import some_images
from torch import nn
from torch._dynamo.testing import CompileCounter

from featcache.backbones.network import Network
from featcache.backbones.runners import compiled as compiled_runner
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module

SIDE = 16
# torch.compile stops compiling a function after this many programs.
LIMIT = 8


class Small(nn.Module):
    """One convolution and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 40, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convolution(images)).mean(dim=(2, 3))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Count the programs of torch.compile; they need no C++ compiler."""
    torch._dynamo.reset()
    counter, compile_ = CompileCounter(), torch.compile

    def compile_and_count(function: Callable[..., Any], *, dynamic: bool, options: dict[str, Any]) -> Any:
        return compile_(function, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", compile_and_count)
    monkeypatch.setattr(compiled_runner, "compiler", lambda: "none is called")
    return counter


def small() -> Network:
    return from_module(Small(), name="small", transform=Transform(image_size=SIDE))


def test_networks_of_one_process_are_all_compiled(compiled: CompileCounter, caplog: pytest.LogCaptureFixture) -> None:
    networks = [small() for _ in range(LIMIT + 2)]
    with caplog.at_level(logging.WARNING):
        for number, network in enumerate(networks, start=1):
            for _ in range(3):
                network.on("cpu", "fp32", "compiled", batch_size=8).features(some_images(8, SIDE))
            assert compiled.frame_count == number
    assert "limit" not in caplog.text


def test_batches_of_more_sizes_than_torch_keeps_are_all_compiled(compiled: CompileCounter) -> None:
    network = small()
    sizes = range(8, 8 + LIMIT + 2)
    for _ in range(2):
        for size in sizes:
            network.on("cpu", "fp32", "compiled", batch_size=size).features(some_images(size, SIDE))
    assert compiled.frame_count == len(sizes)


def test_a_program_is_reused_after_another_precision(compiled: CompileCounter) -> None:
    network = small()
    exact = network.on().features(some_images(8, SIDE))["output"]
    for _ in range(3):
        for precision in ("bf16", "fp32"):
            rows = network.on("cpu", precision, "compiled", batch_size=8).features(some_images(8, SIDE))["output"]
            assert torch.allclose(rows, exact, atol=0 if precision == "fp32" else 0.02)
    assert compiled.frame_count == 2


def test_a_network_that_cannot_be_traced_is_compiled_as_it_is(compiled: CompileCounter) -> None:
    network = from_module(Branching(), name="branching", transform=Transform(image_size=SIDE), layers=("0", "2"))
    exact = network.on().features(some_images(8, SIDE))
    rows = network.on("cpu", "fp32", "compiled", batch_size=8).features(some_images(8, SIDE))
    for layer, values in exact.items():
        assert torch.allclose(rows[layer], values, atol=1e-5)


class Branching(nn.Sequential):
    """Branches on a value, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self[1](self[0](images))
        if float(hidden.sum()) < -1e9:
            return hidden  # type: ignore[no-any-return]
        return self[3](self[2](hidden))  # type: ignore[no-any-return]
