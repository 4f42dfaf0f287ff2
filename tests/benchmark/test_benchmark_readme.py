"""The README quotes a measured comparison: its first picture and its first table."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_files import benchmark_module
from made_up import result, way

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return benchmark_module("readme_table")


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text()


@pytest.fixture
def job(renderer: ModuleType) -> dict[str, Any]:
    measured: dict[str, Any] = renderer.measured()[0]
    return measured


def test_another_number_in_a_result_is_another_readme(renderer: ModuleType, readme: str, job: dict[str, Any]) -> None:
    compared = result()
    slower = result(warm=way("warm", epoch_s=(2.0,) * 10, heads_s=((1, 12.0),)))
    page = renderer.rendered(readme, job, compared)
    assert page == renderer.rendered(page, job, compared)
    assert page != renderer.rendered(page, job, slower)


def test_the_comparison_is_the_readmes_first_picture_and_first_table(
    renderer: ModuleType, readme: str, job: dict[str, Any]
) -> None:
    page = renderer.rendered(readme, job, result())
    pictures, rows = re.findall(r"<img [^>]*src=\"([^\"]+)\"", page), re.findall(r"^\| .*", page, re.MULTILINE)
    assert pictures[0] == "benchmarks/results/end_to_end_cifar10-vgg16-ways-light.svg"
    assert rows[0].startswith("|  | an epoch | 10 epochs | 4 heads |")
