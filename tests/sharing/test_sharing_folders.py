"""A run or a cache that is pushed to a folder and pulled is the same; if anything is wrong, nothing is taken."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_things import Workspace, change_manifest, everything_under, pull, rename_file

import featcache
from featcache import files
from featcache.backbones.transforms import Transform
from featcache.cache.catalog import list_abandoned, list_caches
from featcache.errors import (
    CacheDamaged,
    CacheUnwritable,
    DownloadError,
    FeatcacheError,
    HeadError,
    InvalidOption,
    SharingError,
    WeightsError,
)
from featcache.runs.catalog import run_folders

EACH = ("run", "packed", "segments")


@pytest.mark.parametrize("what", EACH)
def test_what_is_pulled_is_what_was_pushed(what: str, workspace: Workspace, tmp_path: Path) -> None:
    pushed = workspace.push(workspace.each[what], tmp_path / "shared", licence="mit")
    pulled = pull(tmp_path / "shared", tmp_path / "here")
    assert (pushed.copied, pulled.copied, pulled.kind, pulled.licence) == (True, True, pushed.kind, "mit")
    source = workspace.run.folder if what == "run" else workspace.each[what]
    assert pulled.path.name == source.name
    if pulled.path.is_dir():
        for name, content in everything_under(pulled.path).items():
            assert content == (source / name).read_bytes()
        assert len(everything_under(pulled.path)) == pulled.files
    else:
        assert pulled.path.read_bytes() == source.read_bytes()


def test_a_pulled_run_predicts_the_same(workspace: Workspace, shared_run: Path, tmp_path: Path) -> None:
    pulled = pull(shared_run, tmp_path / "here")
    image = workspace.root / "image.png"
    here, there = (featcache.predict(run, image, progress=False).outputs for run in (workspace.run, pulled.path))
    np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("what", ["packed", "segments"])
def test_a_head_is_trained_on_a_pulled_cache(what: str, workspace: Workspace, tmp_path: Path) -> None:
    workspace.push(workspace.each[what], tmp_path / "shared")
    pulled = pull(tmp_path / "shared", tmp_path / "here")
    run = featcache.train_head(pulled.path, "centroid", runs_dir=tmp_path / "runs", progress=False)
    assert run.features.fingerprint


@pytest.mark.parametrize("what", EACH)
def test_pushing_and_pulling_again_copies_nothing(what: str, workspace: Workspace, tmp_path: Path) -> None:
    times = []
    for _ in range(2):
        pushed = workspace.push(workspace.each[what], tmp_path / "shared")
        pulled = pull(tmp_path / "shared", tmp_path / "here")
        paths = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
        times.append({path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in paths})
    assert (pushed.copied, pulled.copied) == (False, False)
    assert times[0] == times[1]


def test_the_card_states_what_a_user_must_know(workspace: Workspace, shared_run: Path) -> None:
    from huggingface_hub import ModelCard

    text = (shared_run / "README.md").read_text()
    spec = workspace.run.features.layers_spec
    accuracy = workspace.run.metrics("test").accuracy  # type: ignore[union-attr]
    for wanted in (spec.fingerprint, workspace.run.weights_sha256, "image\\_size | 8", f"{accuracy:.4f}", "not stated"):
        assert wanted in text
    data: Any = vars(ModelCard(text).data)
    assert data["library_name"] == "featcache"
    assert data["datasets"] == ["digits"]
    assert data["license"] is None
    assert str(workspace.root) not in text


def test_another_licence_changes_card_and_manifest_only(workspace: Workspace, shared_run: Path) -> None:
    before = everything_under(shared_run)
    assert not workspace.push(workspace.run, shared_run, licence="cc-by-4.0").copied
    after = everything_under(shared_run)
    assert {name for name in after if after[name] != before[name]} == {"README.md", "featcache.json"}
    assert 'license: "cc-by-4.0"' in (shared_run / "README.md").read_text()


def test_what_is_left_out_and_what_is_private_is_reported(workspace: Workspace, tmp_path: Path) -> None:
    pushed = workspace.push(workspace.run, tmp_path / "shared")
    # Running the experiment file elsewhere would read and write at paths of this machine.
    assert set(pushed.left_out) == {
        *("history.csv", "predictions_val.npz", "predictions_test.npz"),
        "experiment.toml",
    }
    notes = "\n".join(pushed.notes)
    assert "predictions_val.npz" in notes and str(workspace.packed) in notes and "--license" in notes


def test_what_a_pulled_run_does_not_have_is_an_error_with_a_hint(shared_run: Path, tmp_path: Path) -> None:
    run = featcache.Run.load(pull(shared_run, tmp_path / "here").path)
    for read in (run.history, lambda: run.predictions("test")):
        with pytest.raises(HeadError) as missing:
            read()
        assert "use the original" in str(missing.value.hint)


def test_a_target_that_is_a_file_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SharingError, match="expected a folder"):
        workspace.push(workspace.run, tmp_path / "file")
    with pytest.raises(SharingError, match="expected a folder"):
        pull(tmp_path / "nothing", tmp_path / "here")


# --- another backbone --------------------------------------------------------------------------------------


def test_a_pulled_run_refuses_a_backbone_with_another_transform_and_states_the_difference(
    workspace: Workspace, shared_run: Path, tmp_path: Path
) -> None:
    pulled = pull(shared_run, tmp_path / "here")
    other = featcache.load_backbone("pixels", image_size=16)
    with pytest.raises(WeightsError, match="image_size: expected 8, got 16"):
        featcache.predict(pulled.path, workspace.root / "image.png", backbone=other, progress=False)


def test_a_pulled_run_refuses_other_weights_and_states_both_digests(tmp_path: Path) -> None:
    from torch import nn

    def network(bias: float) -> Any:
        layer = nn.Conv2d(3, 4, 3)
        for name, value in (("weight", 0.1), ("bias", bias)):
            nn.init.constant_(layer.get_parameter(name), value)
        return featcache.from_module(nn.Sequential(layer, nn.Flatten()), name="mine", transform=Transform(image_size=8))

    mine, other = network(0.0), network(1.0)
    options: dict[str, Any] = {"data_dir": tmp_path / "data", "progress": False}
    with featcache.extract("digits", mine, limit=40, **options) as cache:
        run = featcache.train_head(cache, "centroid", runs_dir=tmp_path / "runs", progress=False)
    featcache.push(run, tmp_path / "shared", progress=False)
    pulled = pull(tmp_path / "shared", tmp_path / "here")
    picture = np.zeros((8, 8, 3), np.uint8)
    assert len(featcache.predict(pulled.path, picture, backbone=mine, progress=False).images) == 1
    with pytest.raises(WeightsError, match=r"expected sha256 [0-9a-f]{12}.., got [0-9a-f]{12}.."):
        featcache.predict(pulled.path, picture, backbone=other, progress=False)


# --- what is there already ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", EACH)
def test_a_different_one_here_is_never_overwritten(what: str, workspace: Workspace, tmp_path: Path) -> None:
    workspace.push(workspace.each[what], tmp_path / "shared")
    pulled = pull(tmp_path / "shared", tmp_path / "here")
    path = pulled.path if pulled.path.is_file() else next(pulled.path.glob("*.[hs]*"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = everything_under(tmp_path / "here")
    with pytest.raises(SharingError, match=f"a different {pulled.kind} called .* is here: {path.name} differs"):
        pull(tmp_path / "shared", tmp_path / "here")
    assert everything_under(tmp_path / "here") == before


def test_a_cache_in_segments_is_not_hidden_by_a_packed_one(workspace: Workspace, tmp_path: Path) -> None:
    workspace.push(workspace.packed, tmp_path / "shared")
    (tmp_path / "here" / "data" / "features" / workspace.packed.stem).mkdir(parents=True)
    with pytest.raises(SharingError, match="is here in another form"):
        pull(tmp_path / "shared", tmp_path / "here")


def test_a_folder_with_other_files_is_no_target(workspace: Workspace, shared_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SharingError, match="holds files that featcache push did not write"):
        workspace.push(workspace.run, tmp_path / "mine")
    with pytest.raises(SharingError, match="holds the run"):
        workspace.push(workspace.packed, shared_run)
    (shared_run / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(SharingError, match=r"holds another version .* head.safetensors differs"):
        workspace.push(workspace.run, shared_run)
    assert everything_under(tmp_path / "mine") == {"notes.txt": b"mine"}


# --- what must not be taken --------------------------------------------------------------------------------

BAD_NAMES = [
    "../config.json",
    "/etc/config.json",
    "a/config.json",
    "a\\config.json",
    "C:config.json",
    "config.json:stream.json",
    "..",
    "",
    ".hidden.json",
    "config.json\n",
    "evil.pkl",
    "evil.npz",
    "evil.pth",
    "evil.py",
    "featcache.json",
    "HEAD.safetensors",
    "x" * 300 + ".json",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_or_another_kind_of_file_is_refused(
    name: str, shared_run: Path, tmp_path: Path
) -> None:
    rename_file(shared_run, "config.json", name)
    before = everything_under(tmp_path)
    with pytest.raises(SharingError, match=str(shared_run)):
        pull(shared_run, tmp_path / "here")
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "..", "a\\b", "C:\\run"])
def test_a_name_of_the_run_that_leads_elsewhere_is_refused(name: str, shared_run: Path, tmp_path: Path) -> None:
    change_manifest(shared_run, name=name)
    with pytest.raises(SharingError, match="cannot be called"):
        pull(shared_run, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("what", EACH)
def test_a_flipped_bit_is_found(what: str, workspace: Workspace, tmp_path: Path) -> None:
    workspace.push(workspace.each[what], tmp_path / "shared")
    path = next(path for path in sorted((tmp_path / "shared").iterdir()) if path.suffix in (".h5", ".safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DownloadError, match=f"{path.name} does not match its digest"):
        pull(tmp_path / "shared", tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}


def test_a_file_of_another_size_is_found_before_anything_is_copied(shared_run: Path, tmp_path: Path) -> None:
    with (shared_run / "head.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DownloadError, match=r"head.safetensors has .* bytes, expected"):
        pull(shared_run, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_link_in_place_of_a_file_is_not_followed(workspace: Workspace, shared_run: Path, tmp_path: Path) -> None:
    (shared_run / "config.json").unlink()
    (shared_run / "config.json").symlink_to(workspace.run.folder / "config.json")
    with pytest.raises(SharingError, match=r"no file config.json, or a link"):
        pull(shared_run, tmp_path / "here")


def agree(folder: Path, name: str) -> None:
    """Let the manifest state the size and the digest that a changed file has now."""
    content = (folder / name).read_bytes()
    about = {"nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = json.loads((folder / "featcache.json").read_bytes())["files"]
    change_manifest(folder, files=[one | about if one["name"] == name else one for one in found])


def test_a_damaged_cache_with_the_right_digest_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    workspace.push(workspace.packed, tmp_path / "shared")
    path = tmp_path / "shared" / workspace.packed.name
    content = bytearray(path.read_bytes())
    with featcache.FeatureCache.open(path) as cache:
        content[cache.file.place("train/features/pixels").offset + 5] ^= 1
    path.write_bytes(content)
    agree(tmp_path / "shared", path.name)
    with pytest.raises(CacheDamaged, match="do not match their checksums"):
        pull(tmp_path / "shared", tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}


def test_a_head_that_is_not_that_of_its_record_is_refused(shared_run: Path, tmp_path: Path) -> None:
    path = shared_run / "head.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    agree(shared_run, path.name)
    with pytest.raises(HeadError, match="is not the head that its record describes"):
        pull(shared_run, tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprints": ["0" * 64]}, "states other fingerprints"),
        ({"weights": {"pixels/pixels": "0" * 64}}, "states other weights"),
        ({"version": 2}, "expected version 1"),
        ({"format": "another"}, "was not written by featcache push"),
        ({"kind": "program"}, "expected a run or a cache"),
        ({"files": []}, "lacks the file config.json"),
        ({"files": "all"}, "is damaged"),
        ({"licence": 3}, "is damaged"),
    ],
)
def test_a_manifest_that_lies_is_refused(
    changes: dict[str, Any], message: str, shared_run: Path, tmp_path: Path
) -> None:
    change_manifest(shared_run, **changes)
    with pytest.raises(SharingError, match=message):
        pull(shared_run, tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"format": "featcache-shared"}'])
def test_a_manifest_that_is_none_is_an_error(content: bytes, shared_run: Path, tmp_path: Path) -> None:
    (shared_run / "featcache.json").write_bytes(content)
    with pytest.raises(SharingError):
        pull(shared_run, tmp_path / "here")


def test_files_that_the_manifest_does_not_list_are_named_and_not_taken(shared_run: Path, tmp_path: Path) -> None:
    (shared_run / "evil.pkl").write_bytes(b"cos\nsystem\n")
    pulled = pull(shared_run, tmp_path / "here")
    assert any("evil.pkl" in note for note in pulled.notes)
    assert "evil.pkl" not in everything_under(pulled.path)


def test_a_damaged_cache_is_not_pushed(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / workspace.packed.name
    shutil.copy(workspace.packed, path)
    content = bytearray(path.read_bytes())
    with featcache.FeatureCache.open(path) as cache:
        content[cache.file.place("train/features/pixels").offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheDamaged):
        workspace.push(path, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("what", "target", "options", "error", "message"),
    [
        ("nothing", "shared", {}, SharingError, "no run in .* and no cache in .* is called 'nothing'"),
        ("latest", "shared", {"private": True}, InvalidOption, "--private belongs to hf:ORG/NAME"),
        ("latest", "shared", {"licence": "my own words"}, InvalidOption, "expected --license with the short name"),
        ("latest", "hf:name", {}, InvalidOption, "expected hf:ORG/NAME, got 'hf:name'"),
        ("latest", "hf:a/b@main", {}, InvalidOption, "without a revision"),
        ("latest", "hf:datasets/a/b", {}, InvalidOption, "a repository of data sets"),
    ],
)
def test_a_push_that_cannot_be_is_an_error(
    what: str,
    target: str,
    options: dict[str, Any],
    error: type[FeatcacheError],
    message: str,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        workspace.push(what, target, **options)
    assert not list(tmp_path.iterdir())


# --- faults of the disk, and kills -------------------------------------------------------------------------


@pytest.mark.parametrize("what", EACH)
@pytest.mark.parametrize("call", ["pwrite", "fallocate", "fsync"])
def test_a_full_disk_leaves_nothing_and_pulling_again_succeeds(
    what: str, call: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    actions: list[tuple[Callable[[], Any], Path]] = [
        (lambda: workspace.push(workspace.each[what], tmp_path / "shared"), tmp_path / "shared"),
        (lambda: pull(tmp_path / "shared", tmp_path / "here"), tmp_path / "here"),
    ]
    for action, folder in actions:
        with monkeypatch.context() as patch:
            patch.setattr(files.system, call, fail)
            with pytest.raises(CacheUnwritable, match="no space") as full:
                action()
        option = "TARGET" if folder.name == "shared" else "--runs-dir" if what == "run" else "--data-dir"
        assert f"pass a {option} on another disk" in str(full.value.hint)
        assert not folder.exists() or everything_under(folder) == {}
        assert list(tmp_path.rglob("*.tmp-*")) == []
        assert action().copied


KILLED = """
import os, sys
from featcache import files
from featcache.sharing import places
calls = 0
def die(*arguments, real=files.system.fsync):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    real(*arguments)
files.system.fsync = die
import featcache
featcache.pull(sys.argv[1], data_dir=sys.argv[2] + "/data", runs_dir=sys.argv[2] + "/runs", progress=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("what", ["run", "segments"])
def test_a_killed_pull_leaves_no_run_and_no_cache_and_is_made_again(
    what: str, workspace: Workspace, tmp_path: Path
) -> None:
    workspace.push(workspace.each[what], tmp_path / "shared")
    here = tmp_path / "here"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "shared"), str(here), "3"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    (left,) = [path for path in here.rglob("*.tmp-*") if path.is_dir()]
    assert list_caches(here / "data" / "features") == []
    assert run_folders(here / "runs") == []
    # `featcache gc` removes it.
    assert left in [one.path for one in list_abandoned(left.parent, now=0.0)]
    assert pull(tmp_path / "shared", here).copied
