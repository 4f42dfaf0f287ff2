"""Samples stored as columns behave like a list of samples."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.tables import encode_ids
from featcache.images.samples import Sample, SampleColumns, SampleIds, SampleRows, Samples

ROWS = st.lists(st.tuples(st.text(min_size=1, max_size=12), st.integers(-1, 5)), max_size=40)


def columns(rows: list[tuple[str, int]]) -> Samples:
    kept = SampleColumns("train")
    for sample_id, label in rows:
        kept.append(sample_id, label)
    return kept.samples()


def objects(rows: list[tuple[str, int]]) -> list[Sample]:
    return [Sample(id=sample_id, split="train", label=label) for sample_id, label in rows]


@given(rows=ROWS, start=st.integers(-45, 45), stop=st.integers(-45, 45), step=st.sampled_from([-2, -1, 1, 3]))
def test_they_behave_like_a_list(rows: list[tuple[str, int]], start: int, stop: int, step: int) -> None:
    samples, expected = columns(rows), objects(rows)
    assert list(samples) == expected and samples == expected
    assert samples[start:stop:step] == expected[start:stop:step]
    assert samples[start:stop][::step] == expected[start:stop][::step]
    assert [samples[row] for row in range(-len(rows), len(rows))] == [expected[r] for r in range(-len(rows), len(rows))]
    assert samples.labels.tolist() == [label for _, label in rows]
    assert pickle.loads(pickle.dumps(samples)) == expected


@given(
    first=ROWS,
    second=ROWS,
    rows=st.lists(st.integers(0, 79), max_size=30),
    start=st.integers(0, 90),
    mask=st.booleans(),
)
def test_samples_of_several_splits_behave_like_one_list(
    first: list[tuple[str, int]], second: list[tuple[str, int]], rows: list[int], start: int, mask: bool
) -> None:
    some, more = columns(first), SampleColumns("test")
    for sample_id, label in second:
        more.append(sample_id, label)
    expected = [*some, *more.samples()]
    together = SampleRows([some, more.samples()])
    assert list(together) == expected and together[start:] == expected[start:]
    chosen = np.array([row for row in rows if row < len(expected)], np.int64)
    taken = together.take(np.isin(np.arange(len(expected)), chosen) if mask else chosen)
    picked = [expected[row] for row in (sorted(set(chosen.tolist())) if mask else chosen)]
    assert list(taken) == picked and [taken[row] for row in range(len(picked))] == picked
    for split, samples in taken.by_split().items():
        assert samples == [sample for sample in picked if sample.split == split]
        assert list(SampleIds(samples)) == [sample.id for sample in picked if sample.split == split]


@given(rows=ROWS)
def test_sorting_is_by_code_points(rows: list[tuple[str, int]]) -> None:
    assert [one.id for one in columns(rows).sort_by_id()] == sorted(sample_id for sample_id, _ in rows)


def test_a_million_samples_need_little_more_than_their_names() -> None:
    kept = SampleColumns("train")
    for row in range(100_000):
        kept.append(f"class/{row:08d}.jpg", row % 10)
    samples = kept.samples()
    assert len(pickle.dumps(samples)) < 100_000 * (len("class/00000000.jpg") + 17) + 1000
    assert samples.take(np.array([5, 99_999, 5])) == [samples[5], samples[99_999], samples[5]]


@given(
    ids=st.lists(st.text(min_size=1, max_size=6).filter(lambda text: "\0" not in text), unique=True, min_size=1),
    data=st.data(),
)
def test_ids_are_encoded_at_once_as_one_by_one(ids: list[str], data: st.DataObject) -> None:
    samples = Samples.of("train", [Sample(id=one, split="train", label=0) for one in ids])
    rows = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1))
    for some, names in ((samples, ids), (samples.take(np.array(rows)), [ids[row] for row in rows])):
        encoded = some.to_utf8()
        if encoded is None:
            assert any(b"\xed" in one.encode("utf-8", "surrogatepass") for one in ids)
        else:
            assert encoded.tolist() == [one.encode() for one in names]
            assert encoded.dtype.itemsize == max(len(one.encode()) for one in names)


def test_a_name_that_is_no_utf8_is_not_encoded_at_once() -> None:
    samples = Samples.of("train", [Sample(id="caf\udce9.jpg", split="train", label=0)])
    assert samples.to_utf8() is None
    assert encode_ids("train", SampleIds(samples)).tolist() == [b"caf\xe9.jpg"]
