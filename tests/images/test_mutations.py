"""Damaged files of every kind are read, or raise a typed error; `benchmarks/measure.py mutations` reads many."""

from __future__ import annotations

import ctypes
import os
import random
import time
from pathlib import Path

import mutations
import pytest
from sound_files import SOUND

from featcache.errors import ImageError


@pytest.mark.parametrize("kinds", [list(SOUND)])
def test_damaged_files_end_well_or_with_a_typed_error(kinds: list[str], tmp_path: Path) -> None:
    result = mutations.run(kinds, 150, 1, tmp_path)
    assert mutations.bad_ends(result) == 0, {kind: found["bad"] for kind, found in result["kinds"].items()}
    for kind, found in result["kinds"].items():
        assert found["fine"] + found["typed"] == 150 and found["typed"] > 0, kind


def test_all_undamaged_files_are_read(tmp_path: Path) -> None:
    result = mutations.run(list(SOUND), 0, 0, tmp_path)
    assert not result["not_read"]


def test_the_same_number_is_the_same_damage() -> None:
    for kind in SOUND:
        some = [mutations.damage(bytes(range(256)) * 9, kind, random.Random(f"1/{kind}/2")) for _ in range(2)]
        assert some[0] == some[1] != bytes(range(256)) * 9


@pytest.mark.parametrize(
    ("harm", "ended"),
    [
        ("raise ValueError", mutations.UNTYPED),
        ("time.sleep(60)", mutations.HANG),
        ("os._exit(3)", mutations.CRASH),
        ("bytes(2**34)", mutations.MEMORY),
        ("len(bytearray(b'1') * 80_000_000)", mutations.MEMORY),
        ("raise ImageError('typed')", mutations.TYPED),
    ],
)
def test_errors_of_a_decoder_are_detected(
    harm: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def decode(*_: object) -> None:
        calls.append(1)
        # The first file of each kind in a process is undamaged.
        if len(calls) > 1:
            exec(harm, {"time": time, "os": os, "ImageError": ImageError})

    monkeypatch.setattr(mutations, "decode", decode)
    monkeypatch.setattr(mutations, "SOUND", {"png": SOUND["png"]})
    # On a busy machine all but the hang need more time than it should take to notice one.
    monkeypatch.setattr(mutations, "PATIENCE_S", 2.0 if ended == mutations.HANG else 30.0)
    monkeypatch.setattr(mutations, "MOST_BYTES", 60_000_000)
    result = mutations.run(["png"], 2, 0, tmp_path)
    assert result["kinds"]["png"][ended] == 2
    assert (mutations.bad_ends(result) == 2) is (ended != mutations.TYPED)


def test_memory_that_the_allocator_has_kept_counts_when_a_decoder_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    # Freeing a block raises the size up to which blocks come from the heap; the last one keeps it from shrinking.
    libc.free(libc.malloc(30_000_000))
    blocks = [libc.malloc(20_000_000) for _ in range(6)]
    for block in blocks:
        libc.memset(block, 1, 20_000_000)
    last = libc.malloc(20_000_000)
    for block in blocks:
        libc.free(block)
    try:
        test_errors_of_a_decoder_are_detected(
            "len(bytearray(b'1') * 80_000_000)", mutations.MEMORY, tmp_path, monkeypatch
        )
    finally:
        libc.free(last)
