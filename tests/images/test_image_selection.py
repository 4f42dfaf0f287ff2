"""`--limit` selects a balanced part of a split: deterministic, and contained in every larger one."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import InvalidOption
from featcache.images import Sample, select

samples_of_a_split = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), st.integers(-1, 3)),
    max_size=40,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [Sample(id=i, split="train", label=n) for i, n in sorted(pairs)])


@settings(deadline=None)
@given(samples_of_a_split, st.integers(1, 45), st.integers(0, 3))
def test_it_has_the_requested_size_and_keeps_the_order(samples: list[Sample], limit: int, seed: int) -> None:
    chosen = select(samples, limit, seed)
    assert len(chosen) == min(limit, len(samples))
    assert chosen == [sample for sample in samples if sample in chosen]


@settings(deadline=None)
@given(samples_of_a_split, st.integers(1, 45), st.integers(1, 45), st.integers(0, 3))
def test_it_is_contained_in_every_larger_one(samples: list[Sample], one: int, other: int, seed: int) -> None:
    small, large = sorted((one, other))
    assert set(select(samples, small, seed)) <= set(select(samples, large, seed))


@settings(deadline=None)
@given(samples_of_a_split, st.integers(1, 45))
def test_classes_differ_by_one_at_most_until_one_is_used_up(samples: list[Sample], limit: int) -> None:
    available = Counter(sample.label for sample in samples)
    chosen = Counter(sample.label for sample in select(samples, limit))
    most = max(chosen.values(), default=0)
    assert all(chosen[label] >= min(size, most - 1) for label, size in available.items())


@settings(deadline=None)
@given(samples_of_a_split, st.integers(1, 45), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(samples: list[Sample], limit: int, order: random.Random) -> None:
    shuffled = order.sample(samples, len(samples))
    assert set(select(shuffled, limit)) == set(select(samples, limit))


def test_another_seed_selects_others() -> None:
    samples = [Sample(id=f"train/{n:05d}", split="train", label=n % 2) for n in range(100)]
    assert select(samples, 20, 0) == select(samples, 20, 0)
    assert select(samples, 20, 0) != select(samples, 20, 1)


def test_the_choice_is_pinned() -> None:
    """Caches record the options of their selection: the same options must always select the same images."""
    samples = [Sample(id=f"train/{n:05d}", split="train", label=n % 3) for n in range(30)]
    assert [sample.id[-2:] for sample in select(samples, 7, 0)] == ["09", "10", "11", "13", "15", "17", "18"]


def test_without_a_limit_all_are_selected() -> None:
    samples = [Sample(id=str(n), split="train", label=0) for n in range(3)]
    assert select(samples, None) == samples
    assert select([], 5) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(InvalidOption, match=f"at least 1, got {limit}"):
        select([], limit)
