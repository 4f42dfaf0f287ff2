"""Computing in fp32 what is called fp32.

By default cuDNN rounds the inputs of convolutions to TF32's 11 bits, and a caller may have allowed the like for matrix
products. A cache that says fp32 must not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """Inside, convolutions and matrix products of fp32 tensors are rounded to fp32 and no further, on any device.

    The caller's settings are back afterwards. They belong to the process: one thread at a time.
    """
    # Attributes that torch makes when it is imported.
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    kinds = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.matmul)
    before = [kind.fp32_precision for kind in kinds]
    # Torch has an older way to say it too, which its compiler reads, and raises where the two contradict each other.
    convolutions, products = _told(lambda: cudnn.allow_tf32), _told(torch.get_float32_matmul_precision)
    try:
        _say_in_the_older_way(None if convolutions is None else False, None if products is None else "highest")
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        _say_in_the_older_way(convolutions, products)
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def _told(setting: Callable[[], Any]) -> Any:
    """The setting; None where the caller's own contradict each other already."""
    try:
        return setting()
    except RuntimeError:
        return None


def _say_in_the_older_way(convolutions: bool | None, products: str | None) -> None:
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    if products is not None:
        torch.set_float32_matmul_precision(products)
