"""The contract of every source of images: inherit the class, and give it a source."""

from __future__ import annotations

import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest

from featcache.errors import ImageError, SourceError
from featcache.images import SPLITS, ImageSource, Sample, decode, digest, select

Open = Callable[[], ImageSource]


def all_samples(source: ImageSource) -> list[Sample]:
    return [sample for split in source.splits() for sample in source.samples(split)]


def digests(source: ImageSource) -> list[bytes]:
    return [digest(source.read(sample)) for sample in all_samples(source)]


def _send_digests(source: ImageSource, pipe: Connection) -> None:
    pipe.send(digests(source))
    pipe.close()


class ImageSourceContract:
    """Subclasses define the fixture `open_it`: a function that opens a new source."""

    @pytest.fixture
    def source(self, open_it: Open) -> ImageSource:
        return open_it()

    def test_splits_are_in_order_and_have_images(self, source: ImageSource) -> None:
        assert source.splits() == tuple(split for split in SPLITS if split in source.splits())
        assert source.splits()
        assert all(len(source.samples(split)) for split in source.splits())

    def test_ids_are_unique_and_sorted_by_code_points(self, source: ImageSource) -> None:
        for split in source.splits():
            ids = [sample.id for sample in source.samples(split)]
            assert ids == sorted(ids)
        assert len({sample.id for sample in all_samples(source)}) == len(all_samples(source))

    def test_samples_name_their_split_and_an_existing_class(self, source: ImageSource) -> None:
        for split in source.splits():
            for sample in source.samples(split):
                assert sample.split == split
                assert -1 <= sample.label < len(source.classes)
        assert len(set(source.classes)) == len(source.classes)

    def test_opening_again_gives_the_same_samples_and_bytes(self, source: ImageSource, open_it: Open) -> None:
        again = open_it()
        assert all_samples(again) == all_samples(source)
        assert (again.name, again.origin, again.classes) == (source.name, source.origin, source.classes)
        assert digests(again) == digests(source)

    def test_reading_twice_gives_the_same_bytes(self, source: ImageSource) -> None:
        assert digests(source) == digests(source)

    def test_eight_threads_read_the_same_as_one(self, source: ImageSource) -> None:
        samples = all_samples(source)[:50] * 8
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda sample: digest(source.read(sample)), samples))
        assert found == [digest(source.read(sample)) for sample in samples]

    def test_a_pickled_copy_reads_the_same(self, source: ImageSource) -> None:
        copy: ImageSource = pickle.loads(pickle.dumps(source))
        assert all_samples(copy) == all_samples(source)
        assert (copy.name, copy.origin, copy.classes) == (source.name, source.origin, source.classes)
        assert copy.native_size == source.native_size
        assert digests(copy) == digests(source)

    def test_a_forked_child_reads_the_same(self, source: ImageSource) -> None:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe()
        child = context.Process(target=_send_digests, args=(source, sender))
        child.start()
        assert digests(source) == receiver.recv()
        child.join()

    def test_every_image_decodes_to_rgb(self, source: ImageSource) -> None:
        for sample in all_samples(source):
            pixels = decode(source.read(sample), sample.id)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.flags.c_contiguous
            assert pixels.flags.writeable
            assert source.native_size in (None, pixels.shape[:2])

    def test_a_stamp_stays_while_nothing_changes(self, source: ImageSource) -> None:
        for sample in all_samples(source):
            assert source.stamp(sample) == source.stamp(sample)

    def test_the_name_is_valid_in_a_file_name(self, source: ImageSource) -> None:
        assert re.fullmatch(r"[a-z0-9._-]+", source.name)

    def test_a_split_that_is_not_there_is_an_error(self, source: ImageSource) -> None:
        with pytest.raises(SourceError, match="has no split 'extra'"):
            source.samples("extra")

    def test_a_sample_of_another_source_is_an_image_error(self, source: ImageSource) -> None:
        foreign = Sample(id="train/nowhere/to be found.png", split=source.splits()[0], label=-1)
        with pytest.raises(ImageError, match="to be found"):
            source.read(foreign)

    def test_a_selection_is_taken_in_source_order(self, source: ImageSource) -> None:
        samples = source.samples(source.splits()[0])
        chosen = select(samples, 2)
        assert len(chosen) == min(2, len(samples))
        assert chosen == [sample for sample in samples if sample in chosen]

    def test_it_closes_as_a_context(self, open_it: Open) -> None:
        with open_it() as source:
            assert source.splits()
