"""Weights files: reading state dicts, refusals and their messages, and matching names to a network."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
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


def save_and_read(content: object, path: Path) -> Checkpoint:
    torch.save(content, path)
    return read_checkpoint(path)


def assert_equal(got: Any, expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def refusal(path: Path) -> WeightsError:
    """The error of reading `path`, which must be one line of printable characters without unsafe advice."""
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
    for checkpoint in (save_and_read(stored, tmp_path / "a.pth"), read_checkpoint(tmp_path / "a.safetensors")):
        assert_equal(checkpoint.tensors, stored)
        assert {value.dtype for value in checkpoint.tensors.values()} == {dtype}
        assert_equal(fit_names(checkpoint, stored)[0], stored)


# --- wrappers ----------------------------------------------------------------------------------------------

WRAPPERS = [
    *("state_dict", "model_state_dict", "model", "net", "module", "backbone", "student"),
    *("model_ema", "state_dict_ema", "ema", "teacher", "mine"),
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_dicts_in_wrappers_are_found(wrapper: str, tmp_path: Path) -> None:
    checkpoint = save_and_read({wrapper: tensors(), "epoch": 3}, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.notes == ("left out: epoch",)


@given(keys=st.lists(st.sampled_from(WRAPPERS), max_size=4), extra=st.dictionaries(st.text(max_size=3), st.integers()))
def test_state_dicts_in_nested_wrappers_are_found(
    keys: list[str], extra: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content: dict[str, Any] = dict(tensors())
    for key in keys:
        content = {**extra, key: content}
    checkpoint = save_and_read(content, tmp_path_factory.mktemp("nested") / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.key == "".join(f"{key}." for key in reversed(keys))


@pytest.mark.parametrize("average", ["model_ema", "state_dict_ema", "ema", "teacher", "ema_model", "swa_state_dict"])
@pytest.mark.parametrize("trained", ["model", "mine"])
@pytest.mark.parametrize("first", [True, False])
def test_an_average_is_used_only_if_there_is_nothing_else(
    average: str, trained: str, first: bool, tmp_path: Path
) -> None:
    pair = [(average, tensors(1)), (trained, tensors(2))]
    checkpoint = save_and_read(OrderedDict(pair if first else pair[::-1]), tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors(2))
    assert checkpoint.notes == (f"the file holds 2 state dicts: read {trained}, not {average}",)


def test_an_average_is_used_if_only_its_names_match(tmp_path: Path) -> None:
    checkpoint = save_and_read({"model": tensors(1, ("x", "y", "z")), "ema": tensors(2)}, tmp_path / "a.pth")
    renamed, notes = fit_names(checkpoint, NETWORK)
    assert_equal(renamed, tensors(2))
    assert notes == ("more of the network's names match under ema than under model",)


def test_an_average_together_with_single_numbers_is_used(tmp_path: Path) -> None:
    content = {"best_acc": torch.tensor(0.5), "model_ema": tensors()}
    checkpoint = save_and_read(content, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors())


@pytest.mark.parametrize("expected", [NETWORK, (*NETWORK, "absent")])
def test_two_state_dicts_that_fit_alike_are_refused_with_both_keys(expected: tuple[str, ...], tmp_path: Path) -> None:
    checkpoint = save_and_read({"generator": tensors(1), "discriminator": tensors(2)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"5 of {len(expected)} .*generator\., discriminator\."):
        fit_names(checkpoint, expected)


def test_parts_under_keys_of_their_own_are_put_together(tmp_path: Path) -> None:
    parts = {"encoder": tensors(1), "head": tensors(2, ("fc.weight", "fc.bias"))}
    checkpoint = save_and_read({**parts, "epoch": 1}, tmp_path / "a.pth")
    expected = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items()}
    assert_equal(fit_names(checkpoint, expected)[0], expected)


def test_values_other_than_tensors_are_left_out_and_noted(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content: dict[Any, object] = dict(network.state_dict())
    content |= {"epoch": 3, "optimizer": optimizer.state_dict(), "lr": 0.1, 7: torch.ones(1)}
    checkpoint = save_and_read(content, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, dict(network.state_dict()))
    assert checkpoint.notes == ("left out: epoch, optimizer, lr, 7",)


def test_the_state_of_an_optimiser_is_no_state_dict_of_a_network(tmp_path: Path) -> None:
    state = {"state": {"conv.weight": {"exp_avg": torch.ones(1)}}, "momenta": tensors(1)}
    checkpoint = save_and_read({"network": tensors(2), "optimizer": state, "optim_g": state}, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors(2))
    assert checkpoint.held.keys() == {f"network.{name}" for name in NETWORK}


class Settings:
    """Settings that a training script stores with the tensors; the test notices if they are unpickled."""

    built = 0

    def __init__(self) -> None:
        self.rate = 0.1

    def __setstate__(self, state: object) -> None:
        type(self).built += 1


def test_objects_of_a_training_script_are_left_out_without_being_built(tmp_path: Path) -> None:
    content = {
        "model": tensors(),
        "args": argparse.Namespace(lr=0.1),
        "settings": Settings(),
        "best": np.float64(0.5),
        "folder": tmp_path,
    }
    checkpoint = save_and_read(content, tmp_path / "a.pth")
    assert_equal(checkpoint.tensors, tensors())
    assert checkpoint.notes == ("left out: args, settings, best, folder",)
    assert Settings.built == 0


def test_an_object_that_cannot_be_replaced_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save({"model": tensors(), "history": defaultdict(list)}, tmp_path / "a.pth")
    assert "it needs collections.defaultdict, but code in a file is never run" in refusal(tmp_path / "a.pth").message
    torch.save({"args": argparse.Namespace()}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    assert "it needs argparse.Namespace, but code in a file is never run" in refusal(tmp_path / "b.pth").message


def test_allowed_classes_are_restored(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    save_and_read({"model": tensors(), "settings": Settings()}, tmp_path / "a.pth")
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
    "page": (lambda: b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "a web page"),
    "page_after_blanks": (lambda: b"\n\n  <HTML>", "a web page"),
    "page_with_bom": (lambda: b"\xef\xbb\xbf<!doctype html><p>", "a web page"),
    "xml": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "lfs": (lambda: LFS, "a Git LFS pointer"),
    "message": (lambda: b'{"error": "Repository not found"}', "a JSON text"),
    "index": (lambda: b'{"weight_map": {"w": "model-00001-of-00002.safetensors"}}', "a JSON text"),
    "text": (lambda: b"Invalid username or password.", "an unknown kind of file that begins with b'Invalid username"),
    "escapes": (lambda: b"not\x1b[1m\r\n", "an unknown kind of file that begins with b'not\\x1b[1m\\r\\n'"),
    "empty": (lambda: b"", "an empty file"),
    "torchscript": (script, "a TorchScript program"),
    "keras": (lambda: archive(**{"config.json": b"{}", "model.weights.h5": b"0"}), "a Keras model"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras saves weights"),
    "onnx": (onnx_model, "an ONNX or TensorFlow model"),
    "zip": (lambda: archive(**{"weights.pth": b"0"}), "a zip archive of weights.pth"),
    "pickle": (lambda: pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_weights_file_is_recognised(kind: str, name: str, tmp_path: Path) -> None:
    content, what = FOREIGN[kind]
    (tmp_path / name).write_bytes(content())
    error = refusal(tmp_path / name)
    assert error.message.startswith(f"expected weights, got {what}")
    assert error.hint


@pytest.mark.parametrize("form", ["archive", "old"])
def test_a_whole_network_is_recognised_and_not_built(form: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    torch.save(network, tmp_path / "a.pth", _use_new_zipfile_serialization=form == "archive")
    error = refusal(tmp_path / "a.pth")
    assert "torch.nn.modules.container.Sequential" in error.message
    assert "state_dict()" in str(error.hint)


def test_a_loss_next_to_a_state_dict_is_left_out(tmp_path: Path) -> None:
    content = {"state_dict": tensors(), "hyper_parameters": {"loss": nn.CrossEntropyLoss()}}
    assert_equal(save_and_read(content, tmp_path / "a.ckpt").tensors, tensors())


class Runs:
    """Calls a function on unpickling."""

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
    assert "code in a file is never run" in refusal(tmp_path / "a.pth").message
    assert not (tmp_path / "made").exists()


# --- damaged, missing and unreadable files ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["archive", "old", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(form: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    if form == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=form == "archive")
    content = path.read_bytes()
    path.write_bytes(content[: max(17, int(kept * len(content)))])
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
def test_any_bytes_are_refused_with_a_plain_message(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.pth"
    path.write_bytes(content)
    refusal(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent.pth", tmp_path / "no" / "a.pth", tmp_path / "file" / "a.pth"):
        assert "there is no weights file at" in refusal(path).message


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "the folder" in refusal(tmp_path).message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_without_being_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    assert "there is no weights file at" in refusal(tmp_path / "a.pth").message


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(24, "Too many open files")])
def test_a_file_that_cannot_be_opened_is_not_reported_as_damaged(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tensors(), tmp_path / "a.pth")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    refused = refusal(tmp_path / "a.pth")
    assert f"cannot be opened now: {error.strerror}" in refused.message
    assert "damaged" not in f"{refused.message} {refused.hint}"


# --- names -------------------------------------------------------------------------------------------------


def checkpoint_of(held: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(path=Path("a.pth"), held=held, key="", metadata={}, notes=())


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
def test_a_common_prefix_is_removed_in_both_kinds_of_file(prefix: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{form}"
    held = tensors(before=prefix)
    save_file(held, path) if form == "safetensors" else torch.save(held, path)
    renamed, notes = fit_names(read_checkpoint(path), NETWORK)
    assert_equal(renamed, tensors())
    assert notes == (f"removed from the names: {prefix}",)


_parts = st.lists(st.text("abcdefg_0123456789", min_size=1, max_size=6), min_size=1, max_size=4)


@given(parts=_parts)
def test_any_sequence_of_prefixes_is_removed(parts: list[str]) -> None:
    prefix = "".join(f"{part}." for part in parts)
    renamed, notes = fit_names(checkpoint_of(tensors(before=prefix)), NETWORK)
    assert_equal(renamed, tensors())
    assert notes == (f"removed from the names: {prefix}",)


def test_names_that_fit_are_left_as_they_are() -> None:
    held = tensors() | tensors(1, before="teacher.")
    renamed, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(renamed, held)
    assert notes == ()


def test_the_prefix_with_most_matching_names_is_used() -> None:
    held = tensors(1, NETWORK[:3], "small.") | tensors(2, NETWORK, "large.") | {"small.deep.conv.weight": torch.ones(1)}
    renamed, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(renamed, tensors(2))
    assert notes == ("removed from the names: large.",)


def test_a_missing_name_is_left_to_the_caller() -> None:
    held = tensors(names=NETWORK[:3], before="module.") | {"n_averaged": torch.ones(())}
    renamed, _ = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(renamed, tensors(names=NETWORK[:3]))


@pytest.mark.parametrize(
    "wrapped",
    [
        "features.module.0.weight",
        "backbone.features._orig_mod.0.weight",
        "features._fsdp_wrapped_module.0.weight",
        "module.features.0._checkpoint_wrapped_module.weight",
    ],
)
def test_torchs_wrappers_of_parts_are_removed_from_the_names(wrapped: str) -> None:
    held = {wrapped: torch.ones(2), "classifier.bias": torch.zeros(2)}
    renamed, notes = fit_names(checkpoint_of(held), ["features.0.weight"])
    assert torch.equal(renamed["features.0.weight"], torch.ones(2))
    assert "removed from the names: the wrappers" in notes[0]


def test_a_module_that_is_called_module_keeps_its_name() -> None:
    expected = {f"module.{name}" for name in NETWORK}
    renamed, notes = fit_names(checkpoint_of(tensors(before="module.")), expected)
    assert_equal(renamed, tensors(before="module."))
    assert notes == ()


@pytest.mark.parametrize("pair", [("encoder_q.", "encoder_k."), ("module.a.", "module.b."), ("left.", "right.net.")])
def test_prefixes_that_fit_alike_are_refused_with_both(pair: tuple[str, str]) -> None:
    held = tensors(1, before=pair[0]) | tensors(2, before=pair[1])
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint_of(held), NETWORK)
    assert all(prefix in caught.value.message for prefix in pair)
    assert caught.value.hint


@pytest.mark.parametrize("pair", [("student.", "teacher."), ("model.", "ema_model."), ("net.", "model_ema.module.")])
def test_an_average_under_a_prefix_is_used_only_if_there_is_nothing_else(pair: tuple[str, str]) -> None:
    held = tensors(2, before=pair[1]) | tensors(1, before=pair[0])
    renamed, notes = fit_names(checkpoint_of(held), NETWORK)
    assert_equal(renamed, tensors(1))
    assert notes == (f"removed from the names: {pair[0]}",)
    renamed, _ = fit_names(checkpoint_of(tensors(2, before=pair[1])), NETWORK)
    assert_equal(renamed, tensors(2))


def test_where_no_name_matches_both_sides_are_shown() -> None:
    held = {f"layer{number}.w": torch.ones(1) for number in range(11)}
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint_of(held), [*NETWORK])
    assert "layer7.w and 3 more" in caught.value.message
    assert "expected conv.bias, conv.weight, head.fc.weight, norm.running_mean, norm.weight" in caught.value.message


def test_names_that_match_by_chance_are_no_fit() -> None:
    held = {f"blocks.{number}.fc.weight": torch.full((1,), number) for number in range(30)}
    expected = ["fc.weight", *(f"layer1.{number}.conv1.weight" for number in range(30))]
    held |= {f"stage.blocks.{number}.conv1.weight": torch.ones(1) for number in range(10)}
    expected += [f"blocks.{number}.conv1.weight" for number in range(10)]
    with pytest.raises(WeightsError, match=r"its 40 names are not the 41 of the network: got blocks\.0\.fc\.weight"):
        fit_names(checkpoint_of(held), expected)


# --- kinds of tensors --------------------------------------------------------------------------------------


UNUSUAL: dict[str, Callable[[], Tensor]] = {
    "got qint8": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "got float8_e4m3fn": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "got int8": lambda: torch.ones(3, dtype=torch.int8),
    "got complex64": lambda: torch.ones(3, dtype=torch.complex64),
    "got float32, sparse_coo": lambda: torch.eye(3).to_sparse(),
    "got float32, strided, on meta": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("what", UNUSUAL)
def test_a_tensor_that_cannot_be_computed_with_is_refused(what: str, tmp_path: Path) -> None:
    checkpoint = save_and_read(
        {"module.conv.weight": UNUSUAL[what](), "module.conv.bias": torch.ones(3)}, tmp_path / "a.pth"
    )
    with pytest.raises(WeightsError) as caught:
        fit_names(checkpoint, ["conv.weight", "conv.bias"])
    assert "expected conv.weight as plain numbers" in caught.value.message
    assert what in caught.value.message


def test_an_unusual_tensor_that_is_not_expected_is_ignored(tmp_path: Path) -> None:
    checkpoint = save_and_read({**tensors(), "angles": torch.ones(3, dtype=torch.complex64)}, tmp_path / "a.pth")
    assert fit_names(checkpoint, NETWORK)[0].keys() == {*NETWORK, "angles"}
