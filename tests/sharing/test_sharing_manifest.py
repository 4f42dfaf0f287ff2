"""featcache.json is read as it was written, and what featcache did not write is refused, whatever it is."""

from __future__ import annotations

import json
import string
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import InvalidOption, SharingError
from featcache.sharing.manifest import SUFFIXES, Kind, SharedFile, SharedManifest
from featcache.sharing.places import Repository, repository_in

PLAIN = st.text(string.ascii_letters + string.digits + " é_+()", min_size=1, max_size=40).filter(str.strip)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


def files(names: st.SearchStrategy[str]) -> st.SearchStrategy[SharedFile]:
    return st.builds(SharedFile, name=names, nbytes=st.integers(0, 1 << 50), sha256=DIGESTS)


@st.composite
def manifests(draw: st.DrawFn) -> SharedManifest:
    """Manifests of runs with any further files, and of packed caches."""
    name = draw(PLAIN)
    needed = ["config.json", "metrics.json", "head.safetensors"]
    kind: Kind = draw(st.sampled_from(get_args(Kind)))
    names = [f"{name}.h5"]
    if kind == "run":
        more = draw(st.lists(st.tuples(PLAIN, st.sampled_from(SUFFIXES)), unique_by=lambda one: one[0].casefold()))
        taken = {one.casefold() for one in (*needed, "featcache.json")}
        names = needed + [f"{stem}{suffix}" for stem, suffix in more if f"{stem}{suffix}".casefold() not in taken]
    return SharedManifest(
        kind=kind,
        name=name,
        fingerprints=tuple(draw(st.lists(DIGESTS, max_size=3))),
        weights=draw(st.dictionaries(PLAIN, st.none() | DIGESTS, max_size=3)),
        licence=draw(st.none() | st.just("mit")),
        files=tuple(draw(files(st.just(one))) for one in names),
    )


@given(manifests())
def test_a_manifest_is_read_as_it_was_written(manifest: SharedManifest) -> None:
    assert SharedManifest.from_bytes(manifest.to_bytes(), "here") == manifest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda one: st.lists(one) | st.dictionaries(st.text(), one),
)


@given(manifests(), st.sampled_from(["kind", "name", "fingerprints", "weights", "files", "version"]), JSON)
def test_a_changed_field_is_accepted_or_refused_and_nothing_else(
    manifest: SharedManifest, field: str, value: Any
) -> None:
    content = json.dumps(json.loads(manifest.to_bytes()) | {field: value}).encode()
    try:
        read = SharedManifest.from_bytes(content, "here")
    except SharingError:
        return
    assert all("/" not in file.name and "\\" not in file.name for file in read.files)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(SharingError, match="here"):
        SharedManifest.from_bytes(content, "here")


@given(st.text(max_size=20))
def test_only_names_without_a_way_elsewhere_are_accepted(text: str) -> None:
    try:
        file = SharedFile(name=f"{text}.json", nbytes=0, sha256="0" * 64)
    except SharingError:
        return
    assert not {"/", "\\", ":", "\0", "\n"} & set(file.name) and not file.name.startswith(".")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("folder/of/mine", None),
        ("hf:org/name", Repository(id="org/name", is_dataset=False, revision=None)),
        ("hf:org/name@v1.0", Repository(id="org/name", is_dataset=False, revision="v1.0")),
        ("hf:datasets/org/name", Repository(id="org/name", is_dataset=True, revision=None)),
    ],
)
def test_a_repository_is_written_like_this(text: str, expected: Repository | None) -> None:
    assert repository_in(text) == expected


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:/a/b", "hf:a/b@", "hf:a b/c"])
def test_another_form_of_a_repository_is_an_error(text: str) -> None:
    with pytest.raises(InvalidOption, match="expected hf:ORG/NAME"):
        repository_in(text)
