"""Heads made from class names, against open_clip's own zero-shot logits on random weights."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from head_caches import Blobs, write_cache
from numpy.typing import NDArray
from PIL import Image
from test_training import HeadContract
from tiny_clip import CLIP, SIGLIP, network_of, save, save_tokenizer
from torch.nn import functional as F

import featcache
from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec, Spec
from featcache.cache.targets import Column
from featcache.errors import HeadError, InvalidOption, WeightsError
from featcache.extraction.texts import embed_classes
from featcache.heads.architectures import parse_head
from featcache.heads.config import HeadConfig
from featcache.inference.exporting import export_run
from featcache.rows.cuts import cut_cache
from featcache.rows.features import FeatureRows
from featcache.runs.fit import train_head
from featcache.runs.run import Run
from featcache.sweeps.api import sweep
from featcache.training.texts import linear_start, text_head

CLASSES = ("big_cow", "red_bee", "small_ant")
TEMPLATES = ("a photo of a {}", "the {}, a small animal")
HEAD = "text:" + "|".join(TEMPLATES)
SIDE = 64


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_clip.register(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, whose names have underscores."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number:02d}.png")
    return folder


class Zero:
    """A network of open_clip with random weights in a file, a cache of its features, and its own logits."""

    def __init__(self, name: str, pictures: Path, folder: Path, tokenizer: Path | None = None) -> None:
        self.name, self.pictures, self.folder = name, pictures, folder
        self.network = network_of(name, force_image_size=SIDE)
        self.network.logit_scale.data.fill_(2.5)
        self.weights = save(self.network, folder / "weights.safetensors")
        self.tokenizer = tokenizer
        self.cache = featcache.extract(
            pictures, name, **self.options, dtype="float32", precision="fp32", runner="eager"
        )

    @property
    def options(self) -> dict[str, Any]:
        return {"weights": str(self.weights), "image_size": SIDE, "data_dir": self.folder / "data"}

    @property
    def head(self) -> str:
        return HEAD if self.tokenizer is None else f"{HEAD}|{self.tokenizer}"

    def train(self, head: str = "", **options: Any) -> Run:
        return train_head(self.cache, head or self.head, runs_dir=self.folder / "runs", progress=False, **options)

    def logits(self, split: str) -> NDArray[np.float32]:
        """The library's own zero-shot logits of the images of a split, in the order of the cache."""
        paths = [self.pictures / image for image in self.cache[split].ids]
        transform = featcache.load_backbone(self.name, **self.options).spec.transform
        pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(path)).copy()) for path in paths])
        with torch.inference_mode():
            images = self.network.encode_image(transform.normalize(pixels.permute(0, 3, 1, 2)), normalize=True)
            texts = [self._class(name.replace("_", " ")) for name in CLASSES]
            logits = self.network.logit_scale.exp() * images @ torch.stack(texts).T
            if self.network.logit_bias is not None:
                logits += self.network.logit_bias
        found: NDArray[np.float32] = logits.numpy()
        return found

    def _class(self, name: str) -> torch.Tensor:
        if self.tokenizer is None:
            tokenizer = open_clip.get_tokenizer(self.name.removeprefix("open_clip:"))
        else:
            tokenizer = open_clip.tokenizer.HFTokenizer(
                str(self.tokenizer.parent), context_length=16, clean="canonicalize"
            )
        texts = tokenizer([template.replace("{}", name) for template in TEMPLATES])
        return F.normalize(self.network.encode_text(texts, normalize=True).mean(dim=0), dim=0)


@pytest.fixture(scope="module")
def clip(registered: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Zero:
    return Zero(CLIP, pictures, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(registered: None, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Zero:
    folder = tmp_path_factory.mktemp("siglip")
    return Zero(SIGLIP, pictures, folder, save_tokenizer(folder / "tokenizer"))


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_logits_on_cached_features_are_those_of_the_library(name: str, request: pytest.FixtureRequest) -> None:
    zero: Zero = request.getfixturevalue(name)
    run, expected = zero.train(), zero.logits("test")
    features = zero.cache["test"].features[:]
    assert run.load_solved_head().outputs(features) == pytest.approx(expected, rel=1e-4)
    with torch.inference_mode():
        assert run.head()(torch.from_numpy(features)).numpy() == pytest.approx(expected, rel=1e-4)
    assert run.training.test is not None
    labels = zero.cache["test"].labels
    assert run.training.test.accuracy == pytest.approx((expected.argmax(axis=1) == labels).mean())
    assert run.training.trainable == 0 and len(run.history()) == 1


def test_what_was_read_from_the_class_names_is_reported(clip: Zero) -> None:
    seen: list[str] = []
    run = clip.train(report=seen.append)
    (note,) = [one for one in seen if "texts" in one]
    assert "each class is 2 texts, such as 'a photo of a big cow'" in note
    assert "underscores in class names became spaces" in note and str(clip.weights) in note
    assert note in run.training.notes


def test_a_text_that_is_too_long_is_a_warning(clip: Zero) -> None:
    seen: list[str] = []
    clip.train("text:a {}|" + "very " * 20 + "{}", report=seen.append)
    assert [one for one in seen if one.startswith("warning: 3 texts are too long")]


def test_predictions_from_images_and_exported_ones_are_those_of_the_library(clip: Zero, tmp_path: Path) -> None:
    run = clip.train()
    found = featcache.predict(run, clip.pictures / "test", data_dir=clip.folder / "data", device="cpu")
    expected = torch.from_numpy(clip.logits("test")).softmax(dim=1).numpy()
    assert found.outputs == pytest.approx(expected, abs=1e-5)
    exported = export_run(run, tmp_path / "zero.onnx", data_dir=clip.folder / "data", verify_limit=2)
    assert exported.greatest_difference <= 1e-4


def test_a_stored_head_needs_no_text_encoder(clip: Zero, monkeypatch: pytest.MonkeyPatch) -> None:
    run = clip.train()
    monkeypatch.setitem(sys.modules, "open_clip", None)
    features = clip.cache["test"].features[:]
    assert np.array_equal(Run.load(run.folder).predict(features), run.predictions("test").outputs)


def test_templates_in_a_file_are_those_of_the_name(clip: Zero, tmp_path: Path) -> None:
    file = tmp_path / "animals.txt"
    file.write_text("\n".join(["", *TEMPLATES, ""]))
    assert clip.train(f"text:{file}").weights_sha256 == clip.train().weights_sha256


def test_the_file_that_repeats_a_run_finds_the_templates_from_any_folder(
    clip: Zero, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("animals.txt").write_text("\n".join(TEMPLATES))
    run = clip.train("text:animals.txt")
    written = tomllib.loads((run.folder / "experiment.toml").read_text())
    assert written["head"]["head"] == f"text:{tmp_path / 'animals.txt'}"


def test_it_is_a_row_of_a_sweep_also_with_few_shots(clip: Zero, tmp_path: Path) -> None:
    grid = {"head": ["centroid", HEAD, HEAD.replace("text:", "text+linear:")]}
    found = sweep(clip.cache, grid=grid, shots=[2], draws=2, runs_dir=tmp_path, progress=False)
    rows = {row.config.head: row for row in found.rows}
    assert set(rows) == set(grid["head"])
    assert {one.val.value for one in rows[HEAD].heads if one.val} == {clip.train().training.val.value}


def test_a_cache_without_a_text_encoder_is_compared_by_its_other_heads(clip: Zero, tmp_path: Path) -> None:
    pixels = featcache.extract(clip.pictures, "pixels", image_size=8, data_dir=tmp_path)
    seen: list[str] = []
    found = sweep(
        [clip.cache, pixels], grid={"head": ["centroid", HEAD]}, runs_dir=tmp_path, progress=False, report=seen.append
    )
    assert [(row.values["cache"], row.config.head) for row in found.rows if row.config.head == HEAD] == [(CLIP, HEAD)]
    assert len(found.rows) == 3
    assert any("1 of 4 combinations are left out" in one for one in seen)
    assert any("each class is 2 texts" in one for one in seen)


# --- features around the embeddings of class names ---------------------------------------------------------

NAMES = ("ant", "bee", "cow")
NEAR = "text:a photo of a {}"


@pytest.fixture(scope="module")
def of_texts(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FeatureCache]:
    """Writes a cache of image embeddings that are close to those of the texts of their classes."""
    spec = featcache.load_backbone(CLIP, weights="random:0", data_dir=tmp_path_factory.mktemp("data")).spec
    layer = LayerSpec(name="pre_logits", weights=spec.layers[0].weights, shape=spec.layers[0].shape)
    cache_spec = Spec(
        backbone=CLIP,
        layers=(layer,),
        transform=spec.transform.to_json(),
        decoder="none",
        precision="fp32",
        runner="eager",
        dtype="float32",
    )
    texts = tuple((f"a photo of a {name}",) for name in NAMES)
    centres = embed_classes(cache_spec, "random:0", texts, None).vectors
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    noise = float(apart[apart > 0].min()) / np.sqrt(layer.feature_dim) / 4

    def write(folder: Path, targets: Mapping[str, NDArray[Any]] | None = None, **options: Any) -> FeatureCache:
        splits = {}
        for seed, (name, count) in enumerate((("train", 120), ("test", 60))):
            labels = np.sort(np.arange(count) % 3)
            drawn = np.random.default_rng(seed).normal(0, noise, (count, layer.feature_dim))
            features = (10 * (centres[labels] + drawn)).astype(np.float32)
            given = {key: value[labels] for key, value in (targets or {}).items()}
            splits[name] = Blobs(features=features, labels=labels, layer="pre_logits", targets=given)
        provenance = {"weights": "random:0", "parameters": 1234}
        return write_cache(folder, splits, spec=cache_spec, provenance=provenance, **options)

    return write


@pytest.fixture(scope="module")
def near(of_texts: Callable[..., FeatureCache], tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return of_texts(tmp_path_factory.mktemp("near"))


class TextContract(HeadContract):
    @pytest.fixture
    def cache(self, near: FeatureCache) -> FeatureCache:
        return near


class TestText(TextContract):
    config = HeadConfig(head=NEAR)
    drawn = False
    trainable = 0


class TestTextLinear(TextContract):
    config = HeadConfig(head=NEAR.replace("text:", "text+linear:"), max_epochs=3)
    trainable = 75


@pytest.mark.parametrize(("kind", "refusal"), [("lists", "several classes per image"), ("numbers", "numbers")])
def test_targets_that_texts_cannot_name_are_refused(
    kind: str, refusal: str, of_texts: Callable[..., FeatureCache], tmp_path: Path
) -> None:
    values = np.eye(3, dtype=np.int8) if kind == "lists" else np.arange(3.0)
    column = Column(name="other", kind=kind, names=NAMES if kind == "lists" else ())
    cache = of_texts(tmp_path, targets={"other": values}, columns=(column,))
    with pytest.raises(InvalidOption, match=refusal):
        train_head(cache, NEAR, target="other", runs_dir=tmp_path, progress=False)


# --- a linear head that begins there ---------------------------------------------------------------------


def train_rows(cache: FeatureCache) -> tuple[FeatureRows, Any]:
    cut = cut_cache(cache, val_fraction=0.2, val_seed=42)
    return FeatureRows.of(cache, cut.train, cache.layers), cut.target


def test_a_linear_head_begins_with_the_predictions_of_the_texts(clip: Zero) -> None:
    rows, target = train_rows(clip.cache)
    text, features = text_head(parse_head(HEAD), rows, target), rows.values()
    start = linear_start(text, rows, None)
    outputs = features @ start["output.weight"].T + start["output.bias"]
    assert np.array_equal(outputs.argmax(axis=1), text.head.outputs(features).argmax(axis=1))
    assert outputs == pytest.approx(text.head.outputs(features), rel=0.5, abs=0.5)


@pytest.mark.parametrize("options", [{}, {"standardize": False}, {"trainer": "lightning"}])
def test_a_training_with_steps_of_no_length_stays_there(clip: Zero, options: Mapping[str, Any]) -> None:
    run = clip.train(HEAD.replace("text:", "text+linear:"), lr=1e-12, max_epochs=1, **options)
    rows, target = train_rows(clip.cache)
    text = text_head(parse_head(HEAD), rows, target)
    features = clip.cache["test"].features[:]
    assert np.array_equal(run.predict(features).argmax(axis=1), text.head.outputs(features).argmax(axis=1))
    assert run.training.trainable == 3 * features.shape[1] + 3
    assert any("texts" in note for note in run.training.notes)


# --- what is refused -------------------------------------------------------------------------------------


def test_features_without_a_text_encoder_are_refused_with_the_line_to_type(pictures: Path, tmp_path: Path) -> None:
    cache = featcache.extract(pictures, "pixels", image_size=8, data_dir=tmp_path)
    with pytest.raises(InvalidOption, match="got pixels of pixels") as raised:
        train_head(cache, HEAD, runs_dir=tmp_path / "runs", progress=False)
    line = f"featcache extract --backbone open_clip:ViT-B-32 --weights laion2b_s34b_b79k --dataset {pictures}"
    assert str(raised.value.hint) == line
    assert not list((tmp_path / "runs").glob("*"))


def test_another_layer_is_refused_with_the_line_to_type(clip: Zero, tmp_path: Path) -> None:
    cache = featcache.extract(clip.pictures, CLIP, layers=["visual.ln_post"], **clip.options)
    with pytest.raises(InvalidOption, match=r"visual\.ln_post") as raised:
        train_head(cache, HEAD, runs_dir=tmp_path, progress=False)
    assert str(raised.value.hint) == (
        f"featcache extract --backbone {CLIP} --weights {clip.weights} --dataset {clip.pictures}"
    )


def test_of_several_layers_the_one_to_name_is_the_hint(clip: Zero, tmp_path: Path) -> None:
    cache = featcache.extract(clip.pictures, CLIP, layers=["pre_logits", "visual.ln_post"], **clip.options)
    with pytest.raises(InvalidOption, match=r"pre_logits, visual\.ln_post") as raised:
        train_head(cache, HEAD, layers=cache.layers, runs_dir=tmp_path, progress=False)
    assert str(raised.value.hint) == "--layer pre_logits"
    train_head(cache, HEAD, layers=["pre_logits"], runs_dir=tmp_path, progress=False)


def test_weights_that_changed_or_are_gone_are_refused(pictures: Path, tmp_path: Path) -> None:
    zero = Zero(CLIP, pictures, tmp_path)
    embed_classes.cache_clear()
    save(network_of(CLIP, seed=1, force_image_size=SIDE), zero.weights)
    with pytest.raises(WeightsError, match="are not those"):
        zero.train()
    zero.weights.unlink()
    with pytest.raises(WeightsError, match="no longer"):
        zero.train()


def test_weights_without_a_text_encoder_are_refused(pictures: Path, tmp_path: Path) -> None:
    network = network_of(CLIP, force_image_size=SIDE)
    del network.transformer, network.token_embedding
    weights = save(network, tmp_path / "image.safetensors")
    cache = featcache.extract(
        pictures, CLIP, weights=str(weights), image_size=SIDE, data_dir=tmp_path / "data", runner="eager"
    )
    embed_classes.cache_clear()
    with pytest.raises(WeightsError, match="of its text encoder"):
        train_head(cache, HEAD, runs_dir=tmp_path / "runs", progress=False)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("text", "''"),
        ("text:", "''"),
        ("text:a photo", "'a photo'"),
        ("text:a {}|", "''"),
        ("text:tokenizer.json", "tokenizer.json"),
        ("text:{}|a.json|b.json", "a.json"),
    ],
)
def test_a_name_without_a_template_is_refused(text: str, got: str) -> None:
    with pytest.raises(InvalidOption, match="for the name of a class") as raised:
        parse_head(text)
    assert got in raised.value.message and "text:a photo of a {}" in str(raised.value.hint)


@pytest.mark.parametrize("content", [None, b"", b"a photo", b"\xff\xfe{}"])
def test_a_file_without_templates_is_refused(content: bytes | None, clip: Zero, tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(HeadError, match=r"templates\.txt"):
        clip.train(f"text:{file}")


def test_a_tokenizer_is_named_only_where_one_is_missing(clip: Zero, siglip: Zero, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="of open_clip's own"):
        clip.train(siglip.head)
    with pytest.raises(InvalidOption, match=r"tokenizer_config\.json beside it"):
        siglip.train(f"{HEAD}|{tmp_path / 'tokenizer.json'}")


def test_classes_with_the_same_words_are_refused(of_texts: Callable[..., FeatureCache], tmp_path: Path) -> None:
    cache = of_texts(tmp_path, classes=("ant", "red_bee", "red bee"))
    with pytest.raises(HeadError, match="same texts as 'red_bee'"):
        train_head(cache, HEAD, runs_dir=tmp_path, progress=False)
