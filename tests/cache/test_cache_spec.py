"""A spec is canonical and immutable, and every field changes its fingerprint."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from cache_samples import a_selection, a_spec
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.spec import SPEC_VERSION, FrozenMap, LayerSpec, Selection, Spec, cache_name
from featcache.errors import CacheForeign, CacheOutdated, FeatcacheError, InvalidOption

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
words = st.text(min_size=1, max_size=12)
layer_names = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
layers = st.builds(
    LayerSpec,
    name=layer_names,
    weights=st.none() | words,
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    pool=words,
)
# A strategy for every field: a new field without one fails the tests below by name.
strategies: dict[str, st.SearchStrategy[Any]] = {
    "backbone": words,
    "layers": st.lists(layers, min_size=1, max_size=3, unique_by=lambda layer: layer.name).map(tuple),
    "transform": st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    "decoder": words,
    "precision": st.sampled_from(["fp32", "bf16", "fp16", "uint8"]),
    "runner": words,
    "dtype": st.sampled_from(["float16", "float32", "uint8"]),
    "views": st.integers(1, 9),
    "view_seed": st.integers(0, 99),
    "architecture": st.dictionaries(st.text(max_size=5), json_values, max_size=3),
    "version": st.just(SPEC_VERSION),
}
specs = st.builds(Spec, **strategies)


@given(specs)
def test_a_spec_is_read_from_its_json(spec: Spec) -> None:
    again = Spec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert hash(again) == hash(spec)
    assert again.fingerprint == spec.fingerprint
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("field", [field.name for field in fields(Spec)])
@given(data=st.data())
def test_changing_any_field_changes_the_fingerprint(field: str, data: st.DataObject) -> None:
    spec = data.draw(specs)
    change: dict[str, Any] = {field: SPEC_VERSION + 1 if field == "version" else data.draw(strategies[field])}
    other = replace(spec, **change)
    assert (other.fingerprint == spec.fingerprint) == (other == spec)
    assert (other == spec) == (getattr(other, field) == getattr(spec, field))
    assert bool(spec.differences(other)) == (other != spec)


@pytest.mark.parametrize("field", [field.name for field in fields(LayerSpec)])
@given(data=st.data())
def test_changing_anything_about_a_layer_changes_the_fingerprint(field: str, data: st.DataObject) -> None:
    layer, another = data.draw(layers), data.draw(layers)
    changed = replace(layer, **{field: getattr(another, field)})
    same = a_spec(layers=(layer,)).fingerprint == a_spec(layers=(changed,)).fingerprint
    assert same == (layer == changed)


@given(specs, specs)
def test_differences_name_every_field_that_differs(one: Spec, other: Spec) -> None:
    named = {difference.field.split(".")[0] for difference in one.differences(other)}
    assert named == {field.name for field in fields(Spec) if getattr(one, field.name) != getattr(other, field.name)}


def test_differences_are_dotted_and_hold_both_sides() -> None:
    changed = (replace(a_spec().layers[0], weights="c" * 64), a_spec().layers[1])
    other = a_spec(layers=changed, transform={"size": 256, "mean": [0.485, 0.456, 0.406], "crop": True})
    differences = a_spec().differences(other)
    found = {one.field: (one.this, one.that) for one in differences}
    assert len(differences) == len(found)
    assert found == {
        "layers.avgpool.weights": ("a" * 64, "c" * 64),
        "transform.size": (224, 256),
        "transform.resize": ("squash", None),
        "transform.crop": (None, True),
    }


def test_another_order_of_layers_is_a_difference() -> None:
    turned = a_spec().with_layers(["features.30", "avgpool"])
    (difference,) = a_spec().differences(turned)
    assert difference.field == "layers"
    assert difference.this == ("avgpool", "features.30")


def test_with_layers_keeps_the_given_layers_in_the_given_order() -> None:
    assert a_spec().with_layers(["features.30"]).layer_names == ("features.30",)
    assert a_spec().with_layers(["avgpool", "features.30"]) == a_spec()
    with pytest.raises(KeyError):
        a_spec().with_layers(["fc"])


def test_the_fingerprint_of_a_known_spec_never_changes() -> None:
    # The names of all existing caches depend on it: if this fails, raise SPEC_VERSION.
    assert a_spec().to_json() == (
        '{"architecture":{},"backbone":"vgg16","decoder":"pillow","dtype":"float16",'
        f'"layers":[{{"name":"avgpool","pool":"none","shape":[4,2,2],"weights":"{"a" * 64}"}},'
        f'{{"name":"features.30","pool":"none","shape":[6],"weights":"{"b" * 64}"}}],'
        '"precision":"fp32","runner":"eager","transform":{"mean":[0.485,0.456,0.406],"resize":"squash","size":224},'
        '"version":3,"view_seed":null,"views":1}'
    )
    assert a_spec().fingerprint == "40d61ab744da62eaff1b4478ab78bf3ba7b7020b9906f1e96e06d15c35c2d610"


def test_equal_numbers_have_the_same_json() -> None:
    assert a_spec(transform={"mean": [0.0, 1.0, -0.0]}) == a_spec(transform={"mean": (0, 1, 0)})
    assert a_spec(transform={"crop": True}) != a_spec(transform={"crop": 1})
    assert a_spec(transform={"b": 1, "a": 2}).fingerprint == a_spec(transform={"a": 2, "b": 1}).fingerprint


def test_a_frozen_map_is_a_mapping_of_sorted_keys_that_equals_others() -> None:
    frozen = FrozenMap({"b": [1.0, {"c": None}], "a": "x"})
    assert list(frozen) == ["a", "b"] and len(frozen) == 2 and frozen["b"] == (1, {"c": None})
    assert frozen == {"a": "x", "b": [1, {"c": None}]} and hash(frozen) == hash(FrozenMap(dict(frozen)))
    for other in ({"a": "x"}, {1: 2}, {"a": {1, 2}}, [("a", "x")], 3, None):
        assert frozen != other
    assert eval(repr(frozen)) == frozen


def test_a_value_that_cannot_be_described_is_named_by_its_place() -> None:
    with pytest.raises(InvalidOption, match=r"mean\[1\]: expected a finite number"):
        a_spec(transform={"mean": [0.5, float("nan")]})
    with pytest.raises(InvalidOption, match=r"f\[0\]\[1\]: expected a JSON value, got set"):
        a_spec(transform={"f": [[0, {1}]]})


def test_a_layer_has_the_dimension_of_its_flattened_row() -> None:
    assert [layer.feature_dim for layer in a_spec().layers] == [16, 6]


def test_without_views_a_spec_describes_the_plain_images() -> None:
    plain = a_spec()
    viewed = a_spec(views=3, view_seed=7, transform={**plain.transform, "augmentation": {"flip": 0.5}})
    assert viewed.without_views() == plain == plain.without_views()
    # A seed has no effect on plain images, and is kept with them.
    assert a_spec(view_seed=7).without_views().view_seed == 7


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, ["no augmentation"]),
        ({"views": 3, "view_seed": 7}, ["3 views", "2 augmented with seed 7"]),
        ({"views": 2, "view_seed": 0, "transform": {"augmentation": {"flip": 0}}}, ["2 views", "none mirrored"]),
        ({"views": 2, "view_seed": 0, "transform": {"augmentation": {"flip": 0.5}}}, ["1 augmented with seed 0"]),
    ],
)
def test_the_views_of_a_spec_are_described(changes: dict[str, Any], texts: list[str]) -> None:
    described = a_spec(**changes).views_description
    assert all(text in described for text in texts)
    assert ("mirrored" in described) == ("none mirrored" in texts)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": ""},
        {"source": None},
        {"limit": True},
        {"limit": 2.0},
        {"select_seed": None},
        {"select_seed": "1"},
        {"splits": ("train", "")},
    ],
)
def test_a_selection_that_cannot_be_described_exactly_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"selection: {next(iter(changes)).removesuffix('s')}"):
        a_selection(**changes)


def test_a_selection_of_a_list_of_splits_equals_that_of_a_tuple() -> None:
    assert a_selection(splits=["train"]) == a_selection(splits=("train",)) != a_selection()


def test_a_spec_is_immutable_at_all_levels() -> None:
    given_transform: dict[str, Any] = {"mean": [0.5], "inner": {"a": [1]}}
    given_architecture: dict[str, Any] = {"depths": [1]}
    spec = a_spec(transform=given_transform, architecture=given_architecture)
    before = spec.fingerprint
    given_architecture["depths"].append(2)
    given_transform["mean"].append(0.7)
    given_transform["inner"]["a"].append(2)
    assert spec.transform == {"mean": [0.5], "inner": {"a": [1]}} and spec.architecture == {"depths": [1]}
    assert spec.fingerprint == before
    with pytest.raises(FrozenInstanceError):
        spec.backbone = "other"  # type: ignore[misc]  # the very thing that must fail
    with pytest.raises(TypeError):
        spec.transform["mean"] = 1  # type: ignore[index]  # the very thing that must fail
    assert isinstance(spec.transform["inner"], FrozenMap)


@pytest.mark.parametrize(
    "changes",
    [
        {"transform": {"mean": float("nan")}},
        {"transform": {"mean": float("inf")}},
        {"transform": {"mean": {1, 2}}},
        {"transform": {1: 2}},
        {"transform": {"inner": {1: 2}}},
        {"transform": {"f": a_spec}},
        {"precision": "fp64"},
        {"dtype": "int8"},
        {"backbone": ""},
        {"architecture": {"a": float("nan")}},
        {"layers": ()},
        {"layers": (LayerSpec(name="a", weights=None, shape=(1,)),) * 2},
        {"views": 0},
        {"views": 2},
        {"views": True},
        {"view_seed": 1.5},
        {"view_seed": False},
        {"version": None},
        {"views": None},
        {"decoder": ""},
        {"runner": None},
        {"views": -1, "view_seed": 0},
        {"layers": (LayerSpec(name="a", weights=None, shape=(1,)), LayerSpec(name="a", weights=None, shape=(2,)))},
    ],
)
def test_what_cannot_be_described_exactly_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        a_spec(**changes)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "a\nb", "x" * 201])
def test_a_layer_name_that_hdf5_could_misread_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption):
        LayerSpec(name=name, weights=None, shape=(1,))


@pytest.mark.parametrize("pool", [None, "", 1])
def test_a_layer_without_the_name_of_its_pooling_is_refused(pool: Any) -> None:
    with pytest.raises(InvalidOption, match="layer a: its pooling"):
        LayerSpec(name="a", weights=None, shape=(1,), pool=pool)


@pytest.mark.parametrize("weights", ["", 3, b"a"])
def test_a_layer_with_weights_that_are_no_digest_is_refused(weights: Any) -> None:
    with pytest.raises(InvalidOption, match="layer a: the digest of its weights"):
        LayerSpec(name="a", weights=weights, shape=(1,))


@pytest.mark.parametrize("shape", [(), (0,), (-1, 2), (2.0,), (True,)])
def test_a_layer_without_a_real_shape_is_refused(shape: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidOption):
        LayerSpec(name="a", weights=None, shape=shape)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"version":3}', "\udcff", "[" * 100_000, '{"version":3,"layers":[1]}'],
)
def test_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(CacheForeign):
        Spec.from_json(text)


@given(json_values)
def test_no_json_crashes_the_reader_of_specs_and_selections(value: Any) -> None:
    for kind in (Spec, Selection):
        with pytest.raises(FeatcacheError):
            kind.from_json(json.dumps(value))


def test_a_spec_of_a_later_version_is_refused_with_the_hint_to_update() -> None:
    text = a_spec().to_json().replace('"version":3', '"version":4')
    with pytest.raises(CacheForeign) as caught:
        Spec.from_json(text)
    assert "update" in str(caught.value.hint)


@pytest.mark.parametrize("version", [0, -1, True, None, 4, 2.0, "2"])
def test_a_spec_of_no_earlier_version_is_not_called_outdated(version: Any) -> None:
    values = {**json.loads(a_spec().to_json()), "version": version}
    with pytest.raises(CacheForeign) as caught:
        Spec.from_json(json.dumps(values))
    assert not isinstance(caught.value, CacheOutdated) and str(version) in str(caught.value)


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_spec_of_an_earlier_version_is_refused_with_the_hint_to_extract_again(earlier: int) -> None:
    text = a_spec().to_json().replace('"version":3', f'"version":{earlier}')
    with pytest.raises(CacheOutdated, match="made by an earlier featcache; extract again"):
        Spec.from_json(text)


@given(
    st.builds(
        Selection,
        source=words,
        splits=st.none() | st.lists(words, max_size=3).map(tuple),
        limit=st.none() | st.integers(1, 9),
        select_seed=st.integers(0, 9),
    )
)
def test_a_selection_is_read_from_its_json(selection: Selection) -> None:
    assert Selection.from_json(selection.to_json()) == selection
    assert Selection.from_json(selection.to_json()).digest == selection.digest


def test_a_cache_is_named_after_set_backbone_fingerprint_and_selection() -> None:
    spec, selection = a_spec(), a_selection()
    assert cache_name("cifar10", spec, selection) == f"cifar10-vgg16-{spec.fingerprint[:8]}-{selection.digest[:8]}"
    strange = cache_name("../My Set/ü", a_spec(backbone="hf_hub:timm/vit"), selection)
    assert "/" not in strange
    assert strange.startswith("my-set-u-hf_hub-timm-vit-")
    for name in ("x" * 500, "-" + "y" * 500):
        assert cache_name(name, spec, selection).index("-vgg16-") <= 64
    assert cache_name("--ü.--", spec, selection).startswith("u-vgg16-")
    assert cache_name("写真", spec, selection).startswith("unnamed-vgg16-")
