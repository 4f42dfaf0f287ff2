"""Fixtures that every package's tests share: where the real images and weights lie."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Processes of pytest-xdist ignore Ctrl-C; tests that send it to themselves must meet what a person's program does.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts on time, and the first example of one may load a library.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_SHARED = Path(os.environ.get("FEATCACHE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights beside the project."""
    if not (_SHARED / "data").is_dir():
        pytest.skip(f"needs real images and weights in {_SHARED}, which is absent")
    return _SHARED


@pytest.fixture(scope="session")
def cifar_zip(shared: Path) -> Path:
    """All of CIFAR-10 as JPEG files: `cifar10/{train,test}/<class>/NNNN.jpg`."""
    return shared / "data" / "cifar10-images.zip"


@pytest.fixture(scope="session")
def vgg_weights(shared: Path) -> Path:
    """VGG16's 13 ImageNet convolutions, with mean and std in the metadata."""
    return shared / "weights" / "vgg16_imagenet_features.safetensors"


@pytest.fixture(scope="session")
def inception_weights(shared: Path) -> Path:
    """Inception v3 without `fc`, mean 0 and std 1."""
    return shared / "weights" / "inception_v3_features.safetensors"


# Files that take half a minute or more, the longest first.
LONGEST = (
    *("test_documented_commands.py", "test_torchvision_zoo.py", "test_timm_zoo.py", "test_parity.py"),
    *("test_real_networks.py", "test_zoo.py", "test_report_writing.py", "test_predict.py", "test_export_run.py"),
    *("test_docs_notebook.py", "test_compiled_extraction.py", "test_tutorial_task.py", "test_benchmark_run.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: of two processes neither waits for the other at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """A test that leaves another handler of Ctrl-C fails: with the system's own, a later test's Ctrl-C ends the run."""
    yield
    if (handler := signal.getsignal(signal.SIGINT)) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        pytest.fail(f"{item.nodeid} left {handler!r} as the handler of Ctrl-C")
