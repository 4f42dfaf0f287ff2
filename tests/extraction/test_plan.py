"""A plan's rows, asked for some at a time, are those of the whole."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.checksums import row_digests
from featcache.extraction.plan import Plan
from featcache.images.samples import Samples
from featcache.images.sources import Sample


def a_plan(sizes: dict[str, int], views: int, kinds: int) -> Plan:
    """`sizes` images of each split, among them `kinds` different ones in all."""
    samples = {
        split: Samples.of(split, [Sample(id=f"{split}/{row:03d}", split=split, label=row % 3) for row in range(count)])
        for split, count in sizes.items()
    }
    drawn = np.random.default_rng(0)
    digests = {
        split: np.stack(
            [
                np.frombuffer(hashlib.sha256(str(drawn.integers(kinds)).encode()).digest(), np.uint8)
                for _ in range(count)
            ]
        )
        for split, count in sizes.items()
    }
    return Plan(samples=samples, digests=digests, views=views)


PLANS = st.builds(
    a_plan,
    st.fixed_dictionaries({"train": st.integers(1, 20)}, optional={"test": st.integers(1, 20)}),
    views=st.integers(1, 4),
    kinds=st.integers(1, 60),
)


@given(plan=PLANS, data=st.data())
def test_some_rows_are_those_of_the_whole(plan: Plan, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, plan.rows - 1))), np.int64)
    found = plan.at(rows)
    everything, digests = list(plan.all_samples()), np.concatenate(list(plan.row_digests().values()))
    views = [view for split, some in plan.samples.items() for _ in some for view in range(plan.views_in(split))]
    assert list(found.samples) == [everything[row] for row in rows]
    assert found.views.tolist() == [views[row] for row in rows]
    assert np.array_equal(found.digests, digests[rows])
    assert all(
        np.array_equal(row_digests(image[None], view + 1)[view], digest)
        for image, view, digest in zip(found.images, found.views, found.digests, strict=True)
    )


@given(plan=PLANS, kept=st.integers(0, 2**32 - 1))
def test_what_stands_twice_is_computed_once(plan: Plan, kept: int) -> None:
    rows = np.flatnonzero(np.random.default_rng(kept).random(plan.rows) < 0.7)
    digests = [digest.tobytes() for digests in plan.row_digests().values() for digest in digests]
    first = {digests[row]: row for row in reversed(rows.tolist())}
    assert plan.distinct(rows).tolist() == sorted(first.values())


def test_images_that_share_eight_bytes_are_two() -> None:
    plan = a_plan({"train": 4}, views=1, kinds=1)
    plan.digests["train"][2, 31] ^= 1
    assert plan.distinct(np.arange(4)).tolist() == [0, 2]


def test_views_have_digests_of_their_own() -> None:
    images = np.frombuffer(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest(), np.uint8).reshape(2, 32)
    found = row_digests(images, 3)
    assert np.array_equal(found[[0, 3]], images)
    # As docs/format.md says.
    assert found[5].tobytes() == hashlib.sha256(images[1].tobytes() + (2).to_bytes(4, "little")).digest()
    assert len(np.unique(found, axis=0)) == 6
