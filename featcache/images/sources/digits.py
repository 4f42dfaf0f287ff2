"""scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.errors import SourceError
from featcache.images.sources.arrays import ArraySource

CLASSES = tuple(str(digit) for digit in range(10))
_TEST_SHARE = 5  # one in five


def digits() -> ArraySource:
    """1,797 gray images of 8x8 pixels in ten classes; a fifth of each class is test, the rest train.

    The division depends only on the numbers of the images: within a class they are ordered by the SHA-256 of the
    number's decimal digits, and the first fifth (rounded down) is test. Ids contain the number: "train/00012".
    """
    values = _table()
    pixels = np.rint(values[:, :-1].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    labels = values[:, -1].astype(np.int64)
    is_test = _test_rows(labels)
    numbers = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
    return ArraySource(
        {split: (pixels[rows], labels[rows]) for split, rows in numbers.items()},
        classes=CLASSES,
        name="digits",
        numbers={split: rows.tolist() for split, rows in numbers.items()},
    )


def _table() -> npt.NDArray[np.float64]:
    """The table in scikit-learn's own file, float64 (1797, 65): 64 pixels from 0 to 16, and the digit.

    Read directly, since importing scikit-learn takes two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    folders = [] if package is None else package.submodule_search_locations or []
    for folder in folders:
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            with gzip.open(path, "rt") as file:
                return np.array([line.split(",") for line in file], np.float64)
    hint = "pip install --force-reinstall scikit-learn"
    raise SourceError("scikit-learn's file of the digits is missing", hint=hint)


def _test_rows(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label).tolist()
        in_order = sorted(members, key=lambda number: hashlib.sha256(str(number).encode()).digest())
        chosen[in_order[: len(members) // _TEST_SHARE]] = True
    return chosen
