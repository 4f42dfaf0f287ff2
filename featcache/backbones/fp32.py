"""Disables TF32 and similar modes, so that fp32 features are really computed in fp32.

By default cuDNN rounds the inputs of convolutions to TF32's 11 bits, and a caller may have allowed the same for matrix
products. An fp32 cache must not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """Context manager: convolutions and matrix products of fp32 tensors are computed in full fp32, on any device.

    The caller's settings are restored afterwards. They are global to the process, so use it in one thread at a time.
    """
    # torch creates these attributes at import time, so type checkers do not know them.
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    kinds = (cudnn.conv, cudnn.rnn, backends.cuda.matmul, mkldnn.conv, mkldnn.matmul)
    before = [kind.fp32_precision for kind in kinds]
    # torch's compiler reads the older flags, and raises an error if they contradict the new ones.
    convolutions, products = _read_setting(lambda: cudnn.allow_tf32), _read_setting(torch.get_float32_matmul_precision)
    try:
        _set_legacy_flags(None if convolutions is None else False, None if products is None else "highest")
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        _set_legacy_flags(convolutions, products)
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def _read_setting(setting: Callable[[], Any]) -> Any:
    """The setting; None if the caller's settings already contradict each other, which torch reports as an error."""
    try:
        return setting()
    except RuntimeError:
        return None


def _set_legacy_flags(convolutions: bool | None, products: str | None) -> None:
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
    if products is not None:
        torch.set_float32_matmul_precision(products)
