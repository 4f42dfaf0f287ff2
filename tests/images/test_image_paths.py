"""Which paths are images, and the reason for the others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.images.image_paths import EXTENSIONS, folder_left_out, is_image, reason_left_out
from featcache.images.omissions import BY_SYSTEM, HIDDEN, NO_IMAGE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/1.jpg", None),
        ("a/1.JPEG", None),
        ("1.tif", None),
        ("a/b.c.png", None),
        ("a.b/c.webp", None),
        ("a/1.avif", None),
        ("a/1.HEIC", None),
        ("a/1.jp2", None),
        ("eaDir/1.jpg", None),
        ("a/1.txt", NO_IMAGE),
        ("a/jpg", NO_IMAGE),
        ("a/1.jpg.txt", NO_IMAGE),
        ("a/1.svg", NO_IMAGE),
        ("", NO_IMAGE),
        ("a/.jpg", HIDDEN),
        (".git/1.jpg", HIDDEN),
        ("a/.cache/1.jpg", HIDDEN),
        (".ipynb_checkpoints/1-checkpoint.png", HIDDEN),
        (".hidden/a.txt", HIDDEN),
        ("a/._1.jpg", BY_SYSTEM),
        ("__MACOSX/a/1.jpg", BY_SYSTEM),
        ("a/__MACOSX/1.jpg", BY_SYSTEM),
        ("__MACOSX/a/.x", BY_SYSTEM),
        ("a/Thumbs.db", BY_SYSTEM),
        ("a/desktop.ini", BY_SYSTEM),
        ("a/.DS_Store", BY_SYSTEM),
        ("a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", BY_SYSTEM),
        ("$RECYCLE.BIN/1.jpg", BY_SYSTEM),
        ("$Recycle.Bin/S-1-5/1.jpg", BY_SYSTEM),
        ("System Volume Information/1.jpg", BY_SYSTEM),
    ],
)
def test_a_path_is_an_image_or_there_is_a_reason(path: str, reason: str | None) -> None:
    assert reason_left_out(path) == reason
    assert is_image(path) is (reason is None)


@settings(deadline=None)
@given(st.text(st.sampled_from("a._/@$J"), max_size=6), st.sampled_from([".jpg", "", ".txt", "/x.png", "/Thumbs.db"]))
def test_reason_left_out_agrees_with_is_image(path: str, end: str) -> None:
    assert is_image(path + end) is (reason_left_out(path + end) is None)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_nothing_below_a_folder_that_is_left_out_is_an_image(extension: str) -> None:
    for name in ("@eaDir", "__macosx", ".x", "$RECYCLE.BIN"):
        assert folder_left_out(name) == reason_left_out(f"a/{name}/b/1{extension}") is not None
    assert folder_left_out("cat") is None
