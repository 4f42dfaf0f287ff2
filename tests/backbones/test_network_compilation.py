"""A network is compiled once for one batch size: whatever was placed between, and however many came before it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backbone_contract import some_images
from torch import nn
from torch._dynamo.testing import CompileCounter

from featcache.backbones.network import Network, from_module
from featcache.backbones.transforms import Transform

SIDE = 16
# torch.compile gives up on a function after so many programs, and computes without.
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
    """Counts the programs that torch.compile makes; they compute without a C++ compiler."""
    torch._dynamo.reset()
    counter, compile_ = CompileCounter(), torch.compile

    def counted(function: Callable[..., Any], *, dynamic: bool, options: dict[str, Any]) -> Any:
        return compile_(function, dynamic=dynamic, backend=counter)

    monkeypatch.setattr(torch, "compile", counted)
    return counter


def small() -> Network:
    return from_module(Small(), name="small", transform=Transform(image_size=SIDE))


def test_networks_of_one_process_are_all_compiled(compiled: CompileCounter, caplog: pytest.LogCaptureFixture) -> None:
    backbones = [small() for _ in range(LIMIT + 2)]
    with caplog.at_level(logging.WARNING):
        for number, backbone in enumerate(backbones, start=1):
            backbone.compile(8)
            for _ in range(3):
                backbone.features(some_images(8, SIDE))
            assert compiled.frame_count == number
    assert "limit" not in caplog.text


def test_batches_of_more_sizes_than_torch_keeps_are_all_compiled(compiled: CompileCounter) -> None:
    backbone = small()
    sizes = range(8, 8 + LIMIT + 2)
    for _ in range(2):
        for size in sizes:
            backbone.compile(size)
            backbone.features(some_images(size, SIDE))
    assert compiled.frame_count == len(sizes)


def test_a_program_is_found_again_after_another_precision(compiled: CompileCounter) -> None:
    backbone = small()
    exact = backbone.features(some_images(8, SIDE))["output"]
    for _ in range(3):
        for precision in ("bf16", "fp32"):
            backbone.place("cpu", precision)
            backbone.compile(8)
            rows = backbone.features(some_images(8, SIDE))["output"]
            assert torch.allclose(rows, exact, atol=0 if precision == "fp32" else 0.02)
    assert compiled.frame_count == 2
