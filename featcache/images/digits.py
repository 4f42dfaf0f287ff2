"""scikit-learn's 1,797 real handwritten digits: there without any download."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from featcache.images.arrays import ArraySource

CLASSES = tuple(str(digit) for digit in range(10))
_TEST_SHARE = 5  # one in five


def digits() -> ArraySource:
    """1,797 gray images of 8x8 pixels in ten classes, one in five of each class test, the rest train.

    The cut depends on the images' numbers alone: within a class they are ordered by SHA-256 of the number's
    decimal digits, and the first fifth (rounded down) is test. Ids carry the number: "train/00012".
    """
    # Half a second, for whoever asks for this set.
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = np.rint(loaded.images * 255 / 16).astype(np.uint8)
    labels = loaded.target.astype(np.int64)
    is_test = _test_rows(labels)
    numbers = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
    return ArraySource(
        {split: (pixels[rows], labels[rows]) for split, rows in numbers.items()},
        classes=CLASSES,
        name="digits",
        numbers={split: rows.tolist() for split, rows in numbers.items()},
    )


def _test_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label).tolist()
        in_order = sorted(members, key=lambda number: hashlib.sha256(str(number).encode()).digest())
        chosen[in_order[: len(members) // _TEST_SHARE]] = True
    return chosen
