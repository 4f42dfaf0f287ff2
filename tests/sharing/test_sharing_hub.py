"""Pushing to and pulling from the Hub: huggingface_hub itself, against a small Hub on localhost."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import TOKEN, FakeHub, running
from shared_things import Workspace, everything_under, pull

import featcache
from featcache.errors import CacheUnwritable, DownloadError, HubError, HubNotFound, MissingExtra, SharingError

EACH = ("run", "packed", "segments")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub to which this process is logged in."""
    from huggingface_hub import constants

    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache of the hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def kind_of(what: str) -> str:
    return "models" if what == "run" else "datasets"


@pytest.mark.parametrize("what", EACH)
def test_what_is_pulled_from_the_hub_is_what_was_pushed(
    what: str, workspace: Workspace, hub: FakeHub, tmp_path: Path
) -> None:
    pushed = workspace.push(workspace.each[what], "hf:org/name", licence="mit")
    assert set(hub.files(kind_of(what), "org/name")) >= {"README.md", "featcache.json", ".gitattributes"}
    assert pushed.url == f"{hub.url}/{'' if what == 'run' else 'datasets/'}org/name"
    pulled = pull("hf:org/name", tmp_path / "here")
    assert (pushed.copied, pulled.copied, pulled.name) == (True, True, pushed.name)
    source = workspace.run.folder if what == "run" else workspace.each[what]
    if source.is_dir():
        for name, content in everything_under(pulled.path).items():
            assert content == (source / name).read_bytes()
    else:
        assert pulled.path.read_bytes() == source.read_bytes()
    assert [path for path in (tmp_path / "here").rglob("*") if ".tmp-" in path.name or path.name == ".cache"] == []


def test_pushing_and_pulling_again_transfers_no_large_file(workspace: Workspace, hub: FakeHub, tmp_path: Path) -> None:
    workspace.push(workspace.run, "hf:org/name")
    pull("hf:org/name", tmp_path / "here")
    hub.requests.clear()
    assert not pull("hf:org/name", tmp_path / "here").copied
    assert not workspace.push(workspace.run, "hf:org/name").copied
    assert not [one for one in hub.requests if one.startswith("GET") and one.endswith(".safetensors")]


def test_another_run_replaces_the_first_with_a_note_and_the_history_keeps_it(
    workspace: Workspace, hub: FakeHub, tmp_path: Path
) -> None:
    workspace.push(workspace.run, "hf:org/name")
    (first, _) = hub.repositories["models", "org/name"].commits[-1]
    with featcache.FeatureCache.open(workspace.packed) as cache:
        other = featcache.train_head(cache, "centroid", runs_dir=tmp_path / "runs", progress=False)
    pushed = workspace.push(other, "hf:org/name")
    assert any(f"held the run {workspace.run.folder.name}" in note for note in pushed.notes)
    assert pull("hf:org/name", tmp_path / "here").name == other.folder.name
    assert pull(f"hf:org/name@{first}", tmp_path / "here").name == workspace.run.folder.name


def test_a_cache_in_segments_that_replaces_a_packed_one_removes_its_file(
    workspace: Workspace, hub: FakeHub, tmp_path: Path
) -> None:
    workspace.push(workspace.packed, "hf:org/name")
    workspace.push(workspace.segments, "hf:org/name")
    assert workspace.packed.name not in hub.files("datasets", "org/name")
    assert pull("hf:datasets/org/name", tmp_path / "here").path.is_dir()


def test_a_private_repository_is_private_and_hidden_without_a_login(
    workspace: Workspace, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.push(workspace.run, "hf:org/name", private=True)
    assert hub.repositories["models", "org/name"].private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubNotFound, match="refuses access") as refused:
        pull("hf:org/name", tmp_path / "here")
    assert "hf auth login" in str(refused.value.hint)


def test_nothing_is_uploaded_to_a_public_repository_if_a_private_one_is_wanted(
    workspace: Workspace, hub: FakeHub
) -> None:
    hub.create("models", "org/name")
    with pytest.raises(SharingError, match="exists and is public"):
        workspace.push(workspace.run, "hf:org/name", private=True)
    assert set(hub.files("models", "org/name")) == {".gitattributes"} and hub.objects == {}


def test_a_repository_with_other_files_is_left_alone(workspace: Workspace, hub: FakeHub) -> None:
    hub.create("models", "org/name").commits[-1][1]["README.md"] = b"mine"
    with pytest.raises(SharingError, match=r"files that featcache push did not write: README.md"):
        workspace.push(workspace.run, "hf:org/name")
    assert hub.files("models", "org/name")["README.md"] == b"mine"


def test_a_file_that_changes_while_it_is_pushed_is_not_committed(
    workspace: Workspace, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    shutil.copytree(workspace.run.folder, tmp_path / "run")
    create = HfApi.create_repo

    def change(*arguments: Any, **options: Any) -> Any:
        (tmp_path / "run" / "metrics.json").write_text("{}")
        return create(*arguments, **options)

    monkeypatch.setattr(HfApi, "create_repo", change)
    with pytest.raises(SharingError, match=r"metrics.json was changed while it was pushed"):
        workspace.push(tmp_path / "run", "hf:org/name")
    assert set(hub.files("models", "org/name")) == {".gitattributes"}


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_a_push_without_a_login_is_refused_with_a_hint(
    workspace: Workspace, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"refuses access to hf:org/name \(HTTP 401\)") as refused:
        workspace.push(workspace.run, "hf:org/name")
    assert "hf auth login" in str(refused.value.hint)
    assert hub.repositories == {}


def test_an_unknown_repository_or_revision_is_an_error(workspace: Workspace, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(HubNotFound, match="has no model hf:org/name"):
        pull("hf:org/name", tmp_path / "here")
    workspace.push(workspace.run, "hf:org/name")
    with pytest.raises(HubNotFound, match="HTTP 404"):
        pull("hf:org/name@v9", tmp_path / "here")


def test_a_repository_that_featcache_did_not_push_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.create("models", "org/name").commits[-1][1]["pytorch_model.bin"] = b"pickle"
    with pytest.raises(SharingError, match=r"it has no featcache.json"):
        pull("hf:org/name", tmp_path / "here")


@pytest.mark.parametrize("status", [403, 500])
def test_a_hub_that_refuses_or_fails_is_a_typed_error(
    status: int, hub: FakeHub, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail_with = status
    actions: list[Callable[[], Any]] = [
        lambda: pull("hf:org/name", tmp_path / "here"),
        lambda: workspace.push(workspace.run, "hf:org/name"),
    ]
    for act in actions:
        with pytest.raises(HubError, match=f"HTTP {status}") as failed:
            act()
        assert failed.value.hint and TOKEN not in str(failed.value)


def test_no_network_is_a_typed_error(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(HubError, match=r"cannot be reached for hf:org/name"):
            pull("hf:org/name", tmp_path / "here")


def test_without_its_package_the_extra_is_named(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    actions: list[Callable[[], Any]] = [
        lambda: pull("hf:org/name", tmp_path),
        lambda: workspace.push(workspace.run, "hf:org/name"),
    ]
    for act in actions:
        with pytest.raises(MissingExtra) as missing:
            act()
        assert missing.value.hint == "pip install 'featcache[hub]'"


@pytest.mark.parametrize("what", EACH)
def test_a_flipped_bit_on_the_way_is_found(what: str, workspace: Workspace, hub: FakeHub, tmp_path: Path) -> None:
    workspace.push(workspace.each[what], "hf:org/name")
    stored = hub.files(kind_of(what), "org/name")
    name = next(name for name in stored if name.endswith((".h5", ".safetensors")))
    content = bytearray(stored[name])
    content[len(content) // 2] ^= 1
    stored[name] = bytes(content)
    with pytest.raises(DownloadError, match="does not match its digest"):
        pull("hf:org/name", tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}


def test_a_file_outside_of_the_folder_is_never_written(workspace: Workspace, hub: FakeHub, tmp_path: Path) -> None:
    workspace.push(workspace.run, "hf:org/name")
    stored = hub.files("models", "org/name")
    manifest = json.loads(stored["featcache.json"])
    manifest["files"][0]["name"] = "../../config.json"
    stored["featcache.json"] = json.dumps(manifest).encode()
    with pytest.raises(SharingError, match="cannot be called"):
        pull("hf:org/name", tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_full_disk_is_that_and_no_failure_of_the_hub(
    workspace: Workspace, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.push(workspace.run, "hf:org/name")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("featcache.sharing.hub.fsync_file", fail)
        with pytest.raises(CacheUnwritable, match="no space"):
            pull("hf:org/name", tmp_path / "here")
    assert everything_under(tmp_path / "here") == {}
    assert pull("hf:org/name", tmp_path / "here").copied


def test_the_token_is_never_printed_and_the_command_line_does_the_same(
    workspace: Workspace, hub: FakeHub, tmp_path: Path
) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys\nfrom featcache.cli.app import main\ntry:\n    main()\nfinally:\n"
            "    assert not {'torch', 'torchvision'} & set(sys.modules), 'torch was imported'"
        )
        command = [sys.executable, "-c", code, *words, "--runs-dir", "runs", "--debug"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    pushed = run("push", str(workspace.run.folder), "hf:org/name", "--private", "--license", "mit")
    pulled = run("pull", "hf:org/name", "--json")
    refused = run("pull", "hf:org/other")
    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert refused.returncode == 1
    assert json.loads(pulled.stdout)["path"] == str(Path("runs") / workspace.run.folder.name)
    assert f"page     {hub.url}/org/name" in pushed.stdout
    for ran in (pushed, pulled, refused):
        assert TOKEN not in ran.stdout + ran.stderr


def test_messages_of_the_library_hold_no_token(
    workspace: Workspace, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        workspace.push(workspace.run, "hf:org/name")
    assert TOKEN not in caplog.text
