"""fp32 features are computed in full fp32, regardless of torch's defaults and the caller's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from backbone_contract import some_images

from featcache.backbones.fp32 import ieee_fp32
from featcache.backbones.transforms import Transform
from featcache.backbones.zoos.modules import from_module

BACKENDS: Any = torch.backends


def precisions() -> tuple[str, ...]:
    kinds = (
        BACKENDS.cudnn.conv,
        BACKENDS.cudnn.rnn,
        BACKENDS.cuda.matmul,
        BACKENDS.mkldnn.conv,
        BACKENDS.mkldnn.matmul,
    )
    return tuple(kind.fp32_precision for kind in kinds)


def read_setting(setting: Callable[[], object]) -> object:
    try:
        return setting()
    except RuntimeError:
        return "contradicted"


def settings() -> tuple[object, ...]:
    convolutions = read_setting(lambda: BACKENDS.cudnn.allow_tf32)
    return (*precisions(), convolutions, read_setting(torch.get_float32_matmul_precision))


def by_default() -> None:
    return None


def all_allowed() -> None:
    BACKENDS.fp32_precision = "tf32"


def products_allowed() -> None:
    torch.set_float32_matmul_precision("high")


def one_of_several() -> None:
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def older_flag() -> None:
    BACKENDS.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore torch's settings after each test."""
    before = precisions()
    yield
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for kind, precision in zip(
        (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul),
        before,
        strict=True,
    ):
        kind.fp32_precision = precision


@pytest.mark.parametrize("chosen", [by_default, all_allowed, products_allowed, one_of_several, older_flag])
def test_fp32_is_exact_inside_and_the_callers_settings_are_restored(chosen: Callable[[], None]) -> None:
    chosen()
    before = settings()
    with ieee_fp32():
        assert precisions() == ("ieee",) * 5
    assert settings() == before


@pytest.mark.parametrize("chosen", [by_default, products_allowed, older_flag])
def test_the_older_flags_agree_inside(chosen: Callable[[], None]) -> None:
    chosen()
    with ieee_fp32():
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"


class _Recorder(torch.nn.Module):
    """Records how fp32 is computed while it runs; raises an error on request."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[tuple[str, ...]] = []
        self.fails = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.precisions.append(precisions())
        # Branches on a value, so that the module cannot be traced.
        if self.fails and float(images.sum()) == float(images.sum()):
            raise RuntimeError("requested error")
        return images.mean(dim=(2, 3)) if float(images.sum()) == float(images.sum()) else images


@pytest.mark.parametrize("fails", [False, True])
def test_a_backbone_computes_in_exact_fp32_and_restores_settings_after_an_error(fails: bool) -> None:
    backbone = from_module(_Recorder(), name="recorder", transform=Transform(image_size=8))
    inner = next(one for one in backbone.module().modules() if isinstance(one, _Recorder))
    inner.precisions, inner.fails = [], fails
    before = settings()
    with pytest.raises(RuntimeError, match="requested error") if fails else nullcontext():
        backbone.on().features(some_images(8, 8))
    assert inner.precisions == [("ieee",) * 5]
    assert settings() == before
