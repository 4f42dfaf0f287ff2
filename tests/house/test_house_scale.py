"""The arithmetic of what large sets cost, and how docs/scale.md tells it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import benchmark_module
from hypothesis import given
from hypothesis import strategies as st

model, page = benchmark_module("scale_model"), benchmark_module("scale_page")

CONSTANTS = model.Constants(
    listing_s=1e-6,
    hashing_s=2e-6,
    row_s=3e-6,
    part_s=1e-3,
    hashed_bytes_per_s=2e9,
    copied_bytes_per_s=5e8,
    plan_bytes=100.0,
    known_plan_bytes=60.0,
    assembling_bytes=200.0,
    part_bytes=4000.0,
    process_bytes=3e8,
)
WORK = model.Work(images=1_000_000, image_bytes=100_000, values=2048, part_rows=8192)
ALONE = model.Workers(count=1, images_per_s=1000.0, starting_s=5.0)


def test_one_process_pays_for_each_thing_once() -> None:
    said = model.cost(WORK, ALONE, CONSTANTS)
    assert said.starting_s == 5.0
    # Listed and met: 3 microseconds an image; 100 GB hashed at 2 GB a second.
    assert said.plan_s == pytest.approx(3 + 50)
    assert said.computing_s == pytest.approx(1000)
    assert said.assembling_s == pytest.approx(3 + 123e-3 + 4.096e9 / 5e8)
    assert said.seconds == pytest.approx(said.starting_s + said.plan_s + said.computing_s + said.assembling_s)
    assert (said.parts, said.files, said.store_bound) == (123, 1, False)
    assert said.cache_bytes == 1_000_000 * (4096 + 8 + 32 + 8 + 20) + model.FILE_HEADER_BYTES
    assert said.parts_bytes == 1_000_000 * (4096 + 8 + 32) + 123 * model.PART_HEADER_BYTES
    assert said.disk_bytes == said.cache_bytes + said.parts_bytes
    assert said.driver_bytes == pytest.approx(3e8 + 200e6 + 123 * 4000)
    assert said.worker_bytes == pytest.approx(3e8 + 100e6)


def test_images_that_were_met_are_not_hashed() -> None:
    assert model.cost(replace(WORK, met=True), ALONE, CONSTANTS).plan_s == pytest.approx(1)


def test_workers_share_the_computing_whole_parts_each_and_list_once_more() -> None:
    alone, eight = (model.cost(WORK, replace(ALONE, count=count), CONSTANTS) for count in (1, 8))
    # 123 parts: sixteen for the busiest of eight.
    assert eight.computing_s == pytest.approx(16 * 8192 / 1000)
    assert eight.starting_s == 2 * alone.starting_s
    assert eight.plan_s == pytest.approx(alone.plan_s + 1)
    assert (eight.assembling_s, eight.cache_bytes) == (alone.assembling_s, alone.cache_bytes)
    # Workers find in the index what the driver has met.
    assert eight.worker_bytes == pytest.approx(3e8 + 60e6)


def test_more_workers_than_parts_are_idle() -> None:
    few = replace(WORK, images=8192 * 3)
    assert [model.cost(few, replace(ALONE, count=count), CONSTANTS).computing_s for count in (3, 64)] == [8.192] * 2


def test_a_slow_store_bounds_all_that_goes_through_it() -> None:
    slow = replace(ALONE, count=64, store_bytes_per_s=1e9)
    said = model.cost(WORK, slow, CONSTANTS)
    assert said.store_bound
    assert said.computing_s == pytest.approx((WORK.read_bytes + WORK.parts_bytes) / 1e9)
    assert said.plan_s == pytest.approx(2 + 2 + 100)
    # Through the store three times: a third of a gigabyte a second is less than copying.
    assert said.assembling_s == pytest.approx(3 + 123e-3 + 3 * 4.096e9 / 1e9)


@given(
    images=st.integers(1, 10**8),
    values=st.integers(1, 30_000),
    part_rows=st.integers(1, 8192),
    count=st.integers(1, 100),
)
def test_cost_grows_with_images_and_width_and_never_with_workers_at_computing(
    images: int, values: int, part_rows: int, count: int
) -> None:
    work = replace(WORK, images=images, values=values, part_rows=part_rows)
    said, more, wider, helped = (
        model.cost(some, replace(ALONE, count=workers), CONSTANTS)
        for some, workers in (
            (work, count),
            (replace(work, images=images + part_rows), count),
            (replace(work, values=values + 1), count),
            (work, count + 1),
        )
    )
    assert more.seconds > said.seconds and more.driver_bytes > said.driver_bytes
    assert wider.assembling_s > said.assembling_s and wider.disk_bytes > said.disk_bytes
    assert helped.computing_s <= said.computing_s
    assert 1 <= said.files <= model.MOST_FILES and (said.parts - 1) * part_rows < images <= said.parts * part_rows


def test_a_card_is_fed_by_its_cores() -> None:
    card = model.Gpu(peak_flops=300e12, share=0.3, cores=16, decoded_per_s=300.0)
    assert card.images_per_s(30e9) == pytest.approx(3000) and card.bound(30e9) == "compute"
    assert card.images_per_s(10e9) == pytest.approx(4800) and card.bound(10e9) == "decode"


def test_the_files_of_a_cache_are_as_many_as_can_stay_open() -> None:
    from featcache.cache.sharded import MOST_SHARDS

    assert model.MOST_FILES == MOST_SHARDS
    files = [replace(WORK, images=images).files for images in (10, 10**6, 10**7, 10**9)]
    assert files == [1, 1, 10, 512]


def test_operations_and_parts_are_those_of_featcaches_own_backbones(tmp_path: Path) -> None:
    from featcache.backbones import load_backbone
    from featcache.extraction.plan import part_rows_for

    checks: Any = benchmark_module("scale_checks")
    for name, (values, flops, part_rows) in checks.NETWORKS.items():
        backbone = load_backbone(name, weights="random:0", data_dir=tmp_path).spec
        assert backbone.layers[0].feature_dim == values
        assert backbone.flops_per_image == pytest.approx(flops, rel=0.02)
        assert part_rows_for(backbone) == part_rows


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (42, "42 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (40 * 3600, "40 h"),
     (10 * 86400, "10.0 days")],
)  # fmt: skip
def test_durations_are_told_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(850e6, "850 MB"), (1.7e9, "1.7 GB"), (501e9, "501 GB"), (5.02e12, "5.0 TB")]
)
def test_sizes_are_told_in_the_unit_that_suits(count: float, text: str) -> None:
    assert page.size(count) == text
