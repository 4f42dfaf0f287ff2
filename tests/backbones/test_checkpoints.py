"""Weights files: what is found in them, what is refused and in which words, and how names are fitted to a network's."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from featcache.backbones.checkpoints import Checkpoint, fit_names, read_checkpoint
from featcache.errors import WeightsError

NETWORK = ("conv.weight", "conv.bias", "norm.weight", "norm.running_mean", "head.fc.weight")


def tensors(seed: int = 0, names: tuple[str, ...] = NETWORK, before: str = "") -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {before + name: torch.randn(2, 3, generator=drawn) for name in names}


def saved(content: object, path: Path) -> Checkpoint:
    torch.save(content, path)
    return read_checkpoint(path)


def assert_equal(got: Any, expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def refusal(path: Path) -> WeightsError:
    """The error that reading `path` ends with: one line, in plain characters, without advice to load unsafely."""
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    for text in (caught.value.message, caught.value.hint or ""):
        assert text.isprintable()
        assert "weights_only" not in text
        assert "add_safe_globals" not in text
    assert str(path) in caught.value.message or path.name in caught.value.message
    return caught.value


# --- files that hold weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "a.pth.tar", "a.safetensors", "weights"])
@pytest.mark.parametrize("form", ["archive", "old", "safetensors"])
def test_the_content_of_a_file_decides_how_it_is_read(form: str, name: str, tmp_path: Path) -> None:
    if form == "safetensors":
        save_file(tensors(), tmp_path / name)
    else:
        torch.save(tensors(), tmp_path / name, _use_new_zipfile_serialization=form == "archive")
    checkpoint = read_checkpoint(tmp_path / name)
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.notes == ()


def test_metadata_of_safetensors_is_kept(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"mean": "[0, 0, 0]"})
    assert read_checkpoint(tmp_path / "a.safetensors").metadata == {"mean": "[0, 0, 0]"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_stay_as_they_are_stored(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {"table": torch.ones(3, dtype=dtype), "scalar": torch.zeros((), dtype=dtype)}
    save_file(stored, tmp_path / "a.safetensors")
    for checkpoint in (saved(stored, tmp_path / "a.pth"), read_checkpoint(tmp_path / "a.safetensors")):
        assert_equal(checkpoint.tensors, stored)
        assert {value.dtype for value in checkpoint.tensors.values()} == {dtype}
        assert_equal(fit_names(checkpoint, stored)[0], stored)


def test_parameters_are_tensors(tmp_path: Path) -> None:
    assert_equal(saved({"w": nn.Parameter(torch.ones(2))}, tmp_path / "a.pth").tensors, {"w": torch.ones(2)})


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_as_one(suffix: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, suffix)
    checkpoint = read_checkpoint(index)
    assert_equal(checkpoint.tensors, tensors())
    assert any("2 files" in note for note in checkpoint.notes)


def write_shards(folder: Path, suffix: str = "safetensors") -> Path:
    names = list(tensors())
    shards = {f"model-0000{part + 1}-of-00002.{suffix}": names[part::2] for part in range(2)}
    for shard, held in shards.items():
        part = {name: tensors()[name] for name in held}
        save_file(part, folder / shard) if suffix == "safetensors" else torch.save(part, folder / shard)
    index = folder / f"model.{suffix}.index.json"
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_a_shard_that_is_absent_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(index).message


def test_a_shard_that_lacks_a_tensor_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"model-00001-of-00002\.safetensors lacks conv\.weight"):
        read_checkpoint(index)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "a/b", "", "..", "c:a", 3, None])
def test_shards_lie_beside_their_index(shard: object, tmp_path: Path) -> None:
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    assert "a file beside it" in refusal(tmp_path / "m.index.json").message


# --- wrappers ----------------------------------------------------------------------------------------------

WRAPPERS = [
    *("state_dict", "model_state_dict", "model", "net", "module", "backbone", "student"),
    *("model_ema", "state_dict_ema", "ema", "teacher", "mine"),
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_looked_into(wrapper: str, tmp_path: Path) -> None:
    checkpoint = saved({wrapper: tensors(), "epoch": 3}, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.key == wrapper
    assert checkpoint.notes == ("left out: epoch (int)",)


@given(keys=st.lists(st.sampled_from(WRAPPERS), max_size=4), extra=st.dictionaries(st.text(max_size=3), st.integers()))
def test_nested_wrappers_are_looked_into(
    keys: list[str], extra: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content: dict[str, Any] = dict(tensors())
    for key in keys:
        content = {**extra, key: content}
    checkpoint = saved(content, tmp_path_factory.mktemp("nested") / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.key == ".".join(reversed(keys))


@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema", "ema", "teacher", "ema_model", "swa_state_dict"])
@pytest.mark.parametrize("trained", ["model", "state_dict", "student", "mine"])
@pytest.mark.parametrize("first", [True, False])
def test_an_average_is_taken_only_where_there_is_nothing_else(
    average: str, trained: str, first: bool, tmp_path: Path
) -> None:
    pair = [(average, tensors(1)), (trained, tensors(2))]
    checkpoint = saved(OrderedDict(pair if first else pair[::-1]), tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors(2))
    assert checkpoint.notes == (f"the file holds 2 state dicts: read {trained}, not {average}",)


def test_an_average_is_taken_where_only_it_fits(tmp_path: Path) -> None:
    checkpoint = saved({"model": tensors(1, ("x", "y", "z")), "ema": tensors(2)}, tmp_path / "a.pth")
    fitted, notes = fit_names(checkpoint, NETWORK)
    assert_equal(fitted, tensors(2))
    assert notes == ("taken from the file: ema, which has more of the network's names than model",)


def test_an_average_beside_single_numbers_is_taken(tmp_path: Path) -> None:
    content = {"best_acc": torch.tensor(0.5), "model_ema": tensors()}
    checkpoint = saved(content, tmp_path / "a.pth")
    assert checkpoint.key == "model_ema"
    assert checkpoint.notes == ("left out: best_acc (Tensor)",)


@pytest.mark.parametrize("expected", [NETWORK, (*NETWORK, "absent")])
def test_two_state_dicts_that_fit_alike_are_refused_with_both_keys(expected: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = saved({"generator": tensors(1), "discriminator": tensors(2)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"5 of {len(expected)} .*generator.*discriminator"):
        fit_names(checkpoint, expected)


def test_two_state_dicts_that_are_equal_are_one(tmp_path: Path) -> None:
    checkpoint = saved({"first": tensors(), "second": tensors()}, tmp_path / "a.pth")
    assert_equal(fit_names(checkpoint, NETWORK)[0], tensors())


def test_parts_under_keys_of_their_own_are_put_together(tmp_path: Path) -> None:
    parts = {"encoder": tensors(1), "head": tensors(2, ("fc.weight", "fc.bias"))}
    checkpoint = saved({**parts, "epoch": 1}, tmp_path / "a.pth")
    expected = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}
    assert_equal(fit_names(checkpoint, expected)[0], expected)


def test_what_lies_beside_tensors_is_left_out_and_noted(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content: dict[Any, object] = dict(network.state_dict())
    content |= {"epoch": 3, "optimizer": optimizer.state_dict(), "lr": 0.1, 7: torch.ones(1)}
    checkpoint = saved(content, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, dict(network.state_dict()))
    assert checkpoint.notes == ("left out: epoch (int), optimizer (dict), lr (float), 7 (Tensor)",)


def test_the_state_of_an_optimiser_is_no_state_dict_of_a_network(tmp_path: Path) -> None:
    state = {"state": {"conv.weight": {"exp_avg": torch.ones(1)}}, "momenta": tensors(1)}
    checkpoint = saved({"network": tensors(2), "optimizer": state, "optim_g": state}, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors(2))
    assert checkpoint.others.keys() == set()


class EasyDict(dict[str, object]):
    """A mapping with attributes, as configuration libraries have them."""


class Settings:
    """What a training script stores beside tensors; unpickling it would be noticed."""

    built = 0

    def __init__(self) -> None:
        self.rate = 0.1

    def __setstate__(self, state: object) -> None:
        type(self).built += 1


@pytest.mark.parametrize("form", ["archive", "old"])
def test_objects_of_a_training_script_are_left_out_without_being_built(form: str, tmp_path: Path) -> None:
    content = {
        "model": tensors(),
        "args": argparse.Namespace(lr=0.1),
        "settings": Settings(),
        "best": np.float64(0.5),
        "history": defaultdict(list, loss=[0.5]),
        "config": EasyDict(rate=0.1),
        "folder": tmp_path,
    }
    content["config"].shown = True  # type: ignore[attr-defined]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form == "archive")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    (note,) = checkpoint.notes
    assert "args (argparse.Namespace)" in note
    assert "Settings" in note
    assert "best" in note
    assert Settings.built == 0


def test_nothing_that_was_allowed_stays_allowed(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    saved({"model": tensors(), "settings": Settings()}, tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


# --- files that hold no state dict -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ([torch.zeros(3)], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "an empty mapping"),
        ({"epoch": 3, "lr": 0.1}, r"epoch \(int\), lr \(float\)"),
        ({"net": {"epoch": 3}}, r"net \(dict\)"),
        ({f"key{number}": number for number in range(11)}, r"key0 \(int\), .*key7 \(int\) and 3 more"),
        ({"a\x1b[1m\n": 1}, r"a\\x1b\[1m\\n \(int\)"),
        ({3: torch.zeros(3)}, r"3 \(Tensor\)"),
        ({"args": argparse.Namespace()}, r"args \(argparse\.Namespace\)"),
        ({"optimizer": {"w": torch.zeros(1)}}, r"optimizer \(dict\)"),
    ],
)
def test_where_no_state_dict_is_found_the_keys_are_shown(content: object, shown: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    error = refusal(tmp_path / "a.pth")
    assert error.hint is not None
    with pytest.raises(WeightsError, match=f"expected a state dict .*, got {shown}"):
        read_checkpoint(tmp_path / "a.pth")


def archive(**members: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)
    return written.getvalue()


def tarred() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pth"))
    return written.getvalue()


def script() -> bytes:
    written = io.BytesIO()
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(3, 2)), written)
    return written.getvalue()


def onnx_model() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    content: bytes = helper.make_model(graph, producer_name="pytorch").SerializeToString()
    return content


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FOREIGN: dict[str, tuple[Callable[[], bytes], str]] = {
    "page": (lambda: b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "an HTML page"),
    "page_after_blanks": (lambda: b"\n\n  <HTML>", "an HTML page"),
    "page_with_bom": (lambda: b"\xef\xbb\xbf<!doctype html><p>", "an HTML page"),
    "page_in_utf16": (lambda: "<html>é</html>".encode("utf-16"), "an HTML page"),
    "page_with_accents": (lambda: b"<html>" + "é".encode() * 4096, "an HTML page"),
    "comment_first": (lambda: b"<!-- cached --><html>", "an HTML page"),
    "xml": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML page"),
    "lfs": (lambda: LFS, "a Git LFS pointer"),
    "annex": (lambda: b"/annex/objects/SHA256E-s3--ab.pth\n", "a git-annex pointer"),
    "json": (lambda: b'{"error": "Repository not found"}', "a JSON text"),
    "config": (lambda: b'{"weight_maps": {}}', "a JSON text"),
    "deep_json": (lambda: b'{"weight_map":' * 100_000, "a JSON text"),
    "text": (lambda: b"Invalid username or password.", "a text that begins with 'Invalid username"),
    "empty": (lambda: b"", "an empty file"),
    "bytes": (lambda: bytes(range(1, 60)), "an unknown kind of file that begins with the bytes 01 02 03"),
    "torchscript": (script, "a TorchScript program"),
    "exported": (
        lambda: archive(m__archive_format=b"pt2", m__data__weights__weights_0=b"0"),
        "a program of torch.export",
    ),
    "keras": (lambda: archive(**{"config.json": b"{}", "model.weights.h5": b"0"}), "a Keras model"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras saves weights"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
    "saved_model": (lambda: b"\x08\x01\x12\xa0\x02\x0a\x10" + bytes(100), "a TensorFlow file"),
    "onnx": (onnx_model, "an ONNX model"),
    "npz": (lambda: archive(**{"a.npy": b"0"}), "a NumPy archive"),
    "npy": (lambda: b"\x93NUMPY\x01\0" + bytes(100), "a NumPy array"),
    "zip": (lambda: archive(**{"weights.pth": b"0"}), "a zip archive of weights.pth"),
    "empty_zip": (lambda: b"PK\x03\x04" + archive(), "a zip archive of nothing"),
    "gzip": (lambda: gzip.compress(b"0"), "a compressed file"),
    "tar": (tarred, "a tar archive"),
    "gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "arrays": (lambda: pickle.dumps({"a": np.zeros(3)}), "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_weights_file_is_recognised(kind: str, name: str, tmp_path: Path) -> None:
    content, what = FOREIGN[kind]
    (tmp_path / name).write_bytes(content())
    error = refusal(tmp_path / name)
    assert error.message.startswith(f"expected weights, got {what}")
    assert error.hint


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("saved_model.pb", "a TensorFlow file"),
        ("model.ckpt-1000.data-00000-of-00001", "a TensorFlow file"),
        ("model.ckpt.index", "a TensorFlow file"),
        ("net.onnx", "an ONNX model"),
        ("net.h5", "a damaged Keras file"),
        ("flax_model.msgpack", "weights of Flax"),
    ],
)
def test_a_file_whose_bytes_say_nothing_is_recognised_by_its_name(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x0a\xff\x00\xfe" * 30)
    assert what in refusal(tmp_path / name).message


def test_a_text_is_shown_on_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text("not found\r\n\there" + "x" * 500)
    assert "begins with 'not found\\r\\n\\there" in refusal(tmp_path / "a.pth").message
    assert len(refusal(tmp_path / "a.pth").message) < 150 + len(str(tmp_path))


@pytest.mark.parametrize("form", ["archive", "old"])
@pytest.mark.parametrize("wrapper", [None, "model"])
def test_a_whole_network_is_recognised_and_not_built(form: str, wrapper: str | None, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    content = network if wrapper is None else {wrapper: network, "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form == "archive")
    error = refusal(tmp_path / "a.pth")
    assert "a whole network with its classes" in error.message
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "state_dict()" in str(error.hint)


def test_a_loss_beside_a_state_dict_is_no_whole_network(tmp_path: Path) -> None:
    content = {"state_dict": tensors(), "hyper_parameters": {"loss": nn.CrossEntropyLoss()}}
    assert_equal(saved(content, tmp_path / "a.ckpt").tensors, tensors())


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("form", ["archive", "old"])
@pytest.mark.parametrize("called", [(os.mkdir, "made"), (eval, "open('made', 'w')"), (Path.mkdir, Path("made"))])
def test_a_file_that_would_run_code_is_refused(
    called: tuple[object, ...], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": tensors(), "payload": Runs(*called)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form == "archive")
    assert "only code can make" in refusal(tmp_path / "a.pth").message
    assert not (tmp_path / "made").exists()


# --- damaged, absent, not to be opened ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["archive", "old", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(form: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    if form == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=form == "archive")
    content = path.read_bytes()
    path.write_bytes(content[: max(16, int(kept * len(content)))])
    assert "cut short" in refusal(path).message


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), form=st.sampled_from(["archive", "old", "safetensors"]))
def test_a_changed_byte_gives_tensors_or_a_weights_error(
    place: int, value: int, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("changed") / "a.pth"
    if form == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=form == "archive")
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    try:
        assert read_checkpoint(path).tensors
    except WeightsError as error:
        assert error.message.isprintable()


@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused_in_plain_words(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(content)
    refusal(path)


def test_a_safetensors_header_that_promises_nonsense_is_refused(tmp_path: Path) -> None:
    for number, header in enumerate([b"{}x", b'{"a": 3}', b'{"a": {"data_offsets": ["x", "y"]}}', b"{" * 5000]):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert "safetensors" in refusal(path).message


def test_an_absent_file_is_said_to_be_absent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent.pth", tmp_path / "no" / "a.pth", tmp_path / "file" / "a.pth"):
        assert "there is no weights file at" in refusal(path).message


def test_a_folder_is_refused_with_the_weights_in_it(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "README.md").touch()
    error = refusal(tmp_path)
    assert "the folder" in error.message
    assert "model.safetensors.index.json" in str(error.hint)
    assert "README" not in str(error.hint)
    (tmp_path / "empty").mkdir()
    assert "no file in it" in str(refusal(tmp_path / "empty").hint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    assert "a pipe" in refusal(tmp_path / "a.pth").message


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files")])
def test_a_file_that_cannot_be_opened_now_is_not_called_damaged(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tensors(), tmp_path / "a.pth")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    said = refusal(tmp_path / "a.pth")
    assert f"cannot be opened now: {error.strerror}" in said.message
    assert "damaged" not in f"{said.message} {said.hint}"


# --- names -------------------------------------------------------------------------------------------------


def checkpoint_of(held: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(path=Path("a.pth"), tensors=held, metadata={})


PREFIXES = [
    "module.",
    "model.",
    "backbone.",
    "_orig_mod.",
    "encoder.",
    "net.",
    "visual.",
    "teacher.backbone.",
    "x.y.z.",
]


@pytest.mark.parametrize("form", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_taken_off_in_both_kinds_of_file(prefix: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    held = tensors(before=prefix)
    save_file(held, path) if form == "safetensors" else torch.save(held, path)
    fitted, notes = fit_names(read_checkpoint(path), NETWORK)
    assert_equal(fitted, tensors())
    assert notes == (f"taken off the names: {prefix}",)


_parts = st.lists(st.text("abcdefg_0123456789", min_size=1, max_size=6), min_size=1, max_size=4)


@given(parts=_parts)
def test_any_stack_of_prefixes_is_taken_off(parts: list[str]) -> None:
    prefix = "".join(f"{part}." for part in parts)
    fitted, notes = fit_names(checkpoint_of(tensors(before=prefix)), NETWORK)
    assert_equal(fitted, tensors())
    assert notes == (f"taken off the names: {prefix}",)


@given(parts=_parts)
def test_a_prefix_that_the_network_has_is_put_on(parts: list[str]) -> None:
    prefix = "".join(f"{part}." for part in parts)
    fitted, notes = fit_names(checkpoint_of(tensors()), [prefix + name for name in NETWORK])
    assert_equal(fitted, tensors(before=prefix))
    assert notes == (f"put before the names: {prefix}",)


@given(off=_parts, on=_parts)
def test_a_prefix_is_exchanged_for_the_networks_own(off: list[str], on: list[str]) -> None:
    before, after = ("".join(f"{part}." for part in parts) for parts in (off, on))
    fitted, _ = fit_names(checkpoint_of(tensors(before=before)), [after + name for name in NETWORK])
    assert_equal(fitted, tensors(before=after))


def test_names_that_fit_are_left_as_they_are() -> None:
    held = tensors() | tensors(1, before="teacher.")
    fitted, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(fitted, held)
    assert notes == ()


def test_the_prefix_that_makes_most_names_match_is_taken() -> None:
    held = tensors(1, NETWORK[:3], "small.") | tensors(2, NETWORK, "large.") | {"small.deep.conv.weight": torch.ones(1)}
    fitted, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(fitted, tensors(2))
    assert notes == ("taken off the names: large.",)


def test_a_name_that_is_absent_is_left_to_the_caller() -> None:
    held = tensors(names=NETWORK[:3], before="module.") | {"n_averaged": torch.ones(())}
    fitted, _ = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(fitted, tensors(names=NETWORK[:3]))


@pytest.mark.parametrize(
    ("wrapped", "part"),
    [
        ("features.module.0.weight", "module"),
        ("backbone._orig_mod.features.0.weight", "_orig_mod"),
        ("features._fsdp_wrapped_module.0.weight", "_fsdp_wrapped_module"),
        ("module.features.0._checkpoint_wrapped_module.weight", "_checkpoint_wrapped_module"),
    ],
)
def test_what_torch_wrapped_a_part_in_is_taken_out_of_the_names(wrapped: str, part: str) -> None:
    held = {wrapped: torch.ones(2), "classifier.bias": torch.zeros(2)}
    fitted, notes = fit_names(checkpoint_of(held), ["features.0.weight"])
    assert torch.equal(fitted["features.0.weight"], torch.ones(2))
    assert part in notes[0]


def test_a_module_that_is_called_module_keeps_its_name() -> None:
    expected = {f"module.{name}" for name in NETWORK}
    fitted, notes = fit_names(checkpoint_of(tensors(before="module.")), expected)
    assert_equal(fitted, tensors(before="module."))
    assert notes == ()


@pytest.mark.parametrize("pair", [("encoder_q.", "encoder_k."), ("module.a.", "module.b."), ("left.", "right.net.")])
def test_prefixes_that_fit_alike_are_refused_with_both(pair: tuple[str, str]) -> None:
    held = tensors(1, before=pair[0]) | tensors(2, before=pair[1])
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint_of(held), NETWORK)
    assert all(prefix in caught.value.message for prefix in pair)
    assert caught.value.hint


def test_prefixes_over_equal_tensors_are_no_question() -> None:
    fitted, _ = fit_names(checkpoint_of(tensors(before="a.") | tensors(before="long.b.")), NETWORK)
    assert_equal(fitted, tensors())


@pytest.mark.parametrize("pair", [("student.", "teacher."), ("model.", "ema_model."), ("net.", "model_ema.module.")])
def test_an_average_under_a_prefix_is_taken_only_where_there_is_nothing_else(pair: tuple[str, str]) -> None:
    held = tensors(2, before=pair[1]) | tensors(1, before=pair[0])
    fitted, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(fitted, tensors(1))
    assert notes == (f"taken off the names: {pair[0]} (not {pair[1]}, which fits as well)",)
    fitted, _ = fit_names(checkpoint_of(tensors(2, before=pair[1])), NETWORK)
    assert_equal(fitted, tensors(2))


def test_where_no_name_matches_both_sides_are_shown() -> None:
    held = {f"layer{number}.w": torch.ones(1) for number in range(11)}
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint_of(held), [*NETWORK])
    assert "layer7.w and 3 more" in caught.value.message
    assert "expected conv.bias, conv.weight, head.fc.weight, norm.running_mean and 1 more" in caught.value.message


def test_names_that_match_by_chance_are_no_fit() -> None:
    held = {f"blocks.{number}.fc.weight": torch.full((1,), number) for number in range(30)}
    expected = ["fc.weight", *(f"layer1.{number}.conv1.weight" for number in range(30))]
    held |= {f"stage.blocks.{number}.conv1.weight": torch.ones(1) for number in range(10)}
    expected += [f"blocks.{number}.conv1.weight" for number in range(10)]
    with pytest.raises(WeightsError, match=r"its 40 names are not the 41 of the network: got blocks\.0\.fc\.weight"):
        fit_names(checkpoint_of(held), expected)


def test_converted_tensors_are_fitted_too(tmp_path: Path) -> None:
    checkpoint = saved({"model": tensors(before="old.")}, tmp_path / "a.pth")
    fitted, notes = fit_names(replace(checkpoint, tensors=tensors(before="new.")), NETWORK)
    assert_equal(fitted, tensors())
    assert notes == ("taken off the names: new.",)


# --- kinds of tensors --------------------------------------------------------------------------------------


UNUSUAL: dict[str, Callable[[], Tensor]] = {
    "a quantised tensor (qint8)": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "a quantised tensor (float8_e4m3fn)": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "a complex tensor (complex64)": lambda: torch.ones(3, dtype=torch.complex64),
    "a sparse tensor (sparse_coo)": lambda: torch.eye(3).to_sparse(),
    "a sparse tensor (sparse_csr)": lambda: torch.eye(3).to_sparse_csr(),
    "a tensor without data (device meta)": lambda: torch.ones(3, device="meta"),
    "integers (int8), as quantised weights are stored": lambda: torch.ones(3, dtype=torch.int8),
    "integers (uint8), as quantised weights are stored": lambda: torch.ones(3, dtype=torch.uint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse CSR")
@pytest.mark.parametrize("what", UNUSUAL)
def test_a_tensor_that_cannot_be_computed_with_is_refused(what: str, tmp_path: Path) -> None:
    checkpoint = saved({"module.conv.weight": UNUSUAL[what](), "module.conv.bias": torch.ones(3)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint, ["conv.weight", "conv.bias"])
    assert f"expected conv.weight as float32, float64, float16 or bfloat16, got {what}" in caught.value.message


def test_an_unusual_tensor_that_is_not_expected_is_no_matter(tmp_path: Path) -> None:
    checkpoint = saved({**tensors(), "angles": torch.ones(3, dtype=torch.complex64)}, tmp_path / "a.pth")
    assert fit_names(checkpoint, NETWORK)[0].keys() == {*NETWORK, "angles"}
