"""A plan's rows, asked for some at a time, are those of the whole."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.checksums import row_digests
from featcache.extraction.plan import Plan
from featcache.extraction.segment_writer import first_of_equals
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


@given(kinds=st.lists(st.integers(0, 9), max_size=40))
def test_the_first_of_equal_digests_is_found(kinds: list[int]) -> None:
    digests = [hashlib.sha256(str(kind).encode()).digest() for kind in kinds]
    found = first_of_equals(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))
    assert found.tolist() == [kinds.index(kind) for kind in kinds]


def test_images_that_share_eight_bytes_are_two() -> None:
    digests = np.repeat(np.frombuffer(hashlib.sha256(b"a").digest(), np.uint8)[None], 4, axis=0)
    digests[2, 31] ^= 1
    assert first_of_equals(digests).tolist() == [0, 0, 2, 0]


def test_views_have_digests_of_their_own() -> None:
    images = np.frombuffer(hashlib.sha256(b"a").digest() + hashlib.sha256(b"b").digest(), np.uint8).reshape(2, 32)
    found = row_digests(images, 3)
    assert np.array_equal(found[[0, 3]], images)
    # As docs/format.md says.
    assert found[5].tobytes() == hashlib.sha256(images[1].tobytes() + (2).to_bytes(4, "little")).digest()
    assert len(np.unique(found, axis=0)) == 6
