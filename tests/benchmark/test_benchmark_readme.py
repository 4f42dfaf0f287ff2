"""The README quotes a measured comparison: its headline and its table."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_files import benchmark_module
from made_up import result, way

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return benchmark_module("pages")


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_another_number_in_a_result_is_another_readme(renderer: ModuleType, readme: str) -> None:
    slower = result(warm=way("warm", epoch_s=(2.0,) * 10, heads_s=((1, 12.0),)))
    pages = [renderer.render(readme, {"comparison": renderer.comparison(one)}) for one in (result(), result(), slower)]
    assert pages[0] == pages[1] != pages[2]
    again = renderer.render(pages[0], {"comparison": renderer.comparison(result())})
    assert again == pages[0]


def test_the_comparison_has_the_measured_picture_and_table(renderer: ModuleType, readme: str) -> None:
    page = renderer.render(readme, {"comparison": renderer.comparison(result())})
    pictures, rows = re.findall(r"<img [^>]*src=\"([^\"]+)\"", page), re.findall(r"^\| .*", page, re.MULTILINE)
    assert "benchmarks/results/end_to_end_cifar10-vgg16.svg" in pictures
    assert any(row.startswith("| the network runs | 1 classifier | all 4 | correct |") for row in rows)


def test_the_headline_is_the_fair_speed_up_and_the_large_one_stands_beside_it(renderer: ModuleType) -> None:
    # Cold over end to end at the same speed: (2 + 10 * 100 + 50) / 162; warm: the same over 12.
    text = renderer.headline(result())
    assert text.index("6.5 times faster (2.7 min instead of ≈ 18 min, vgg16 equally fast in both)") < text.index(
        "each further one 88 times faster"
    )
