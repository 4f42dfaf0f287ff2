"""`featcache label`: a table's columns become targets, nothing is computed, and every doubt is reported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from command_line import PIXELS, answer, complaint, featcache

import featcache as package
from featcache.cache.reader import FeatureCache
from featcache.cache.verification import verify

TABLE = """file,age,species,note,owner
00,3,cat,,ann
01.png,4.5,eel;cat,a long story,bob
99.png,1,cat,,ann
"""


@pytest.fixture
def table(here: Path) -> Path:
    return write(here / "table.csv", TABLE)


@pytest.fixture
def one_class(here: Path) -> Path:
    """Pictures whose file names are their own, and their cache."""
    pictures = here / "pictures"
    for path in sorted(pictures.rglob("*.png")):
        if path.parent.name != "cat":
            path.unlink()
    featcache("extract", *PIXELS, "--split", "train")
    return next((here / "data" / "features").glob("*.h5"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def values_of(path: Path, target: str, split: str = "train") -> dict[str, object]:
    """The values of a target by sample id."""
    with FeatureCache.open(path) as cache:
        return dict(zip(cache[split].ids, cache[split].target(target).decode(), strict=True))


def test_columns_are_added_with_the_kind_that_their_cells_mean(one_class: Path, table: Path) -> None:
    output = answer("label", one_class.stem, table, "--kind", "owner=groups")
    assert [(one["name"], one["kind"], one["names"], one["replaced"]) for one in output["added"]] == [
        ("age", "numbers", 0, False),
        ("species", "lists", 2, False),
        ("note", "classes", 1, False),
        ("owner", "groups", 2, False),
    ]
    assert (output["on"], output["key"], output["rows"], output["matched"]) == ("filename", "file", 12, 2)
    assert output["unmatched"] == ["99.png"]
    assert [one["unlabelled"] for one in output["added"]] == [10, 10, 11, 10]
    assert values_of(one_class, "age")["train/cat/01.png"] == 4.5
    assert values_of(one_class, "species")["train/cat/01.png"] == ("cat", "eel")
    assert values_of(one_class, "note")["train/cat/00.png"] is None
    assert values_of(one_class, "label")["train/cat/00.png"] == "cat"
    assert verify(one_class, full=True).sound


def test_a_person_reads_what_was_added_and_what_was_not(one_class: Path, here: Path) -> None:
    unknown = "".join(f"{number},1,x\n" for number in range(90, 96))
    table = write(here / "t.csv", f"file,age,split\n00,3,train\n00.png,3,train\n,1,x\n{unknown}")
    result = featcache("label", one_class, table)
    for line in (
        "1 of 12 images matched on the filename (column file)",
        "6 rows of the table are about no image: 90, 91, 92, 93, 94 and 1 more",
        "1 row of the table has no file",
        "1 row of the table repeats another one",
        "columns left out: split",
    ):
        assert line in result.stdout.splitlines()
    assert "the whole file is written again" in result.stderr


def test_filters_choose_the_cache_that_a_table_is_for(one_class: Path, table: Path) -> None:
    assert answer("label", table, "--backbone", "pixels", "--key", "file")["added"]
    assert answer("label", "--remove", "age")["removed"] == ["age"]
    assert "vgg16" in complaint("label", table, "--backbone", "vgg16", "--key", "file")[0]


def test_a_target_is_replaced_whole_and_removed(one_class: Path, table: Path, here: Path) -> None:
    featcache("label", one_class, table)
    again = write(here / "again.tsv", "file\tage\n02\t7\n")
    (added,) = answer("label", one_class, again)["added"]
    assert (added["replaced"], added["unlabelled"]) == (True, 11)
    assert {key: value for key, value in values_of(one_class, "age").items() if value is not None} == {
        "train/cat/02.png": 7.0
    }
    assert answer("label", one_class, "--remove", "age", "--remove", "species")["removed"] == ["age", "species"]
    with FeatureCache.open(one_class) as cache:
        assert list(cache.targets) == ["label", "note", "owner"]


@pytest.mark.parametrize("packed", ["--pack", "--no-pack"])
def test_matching_by_id_and_by_digest_in_one_file_or_several(here: Path, packed: str) -> None:
    featcache("extract", *PIXELS, packed)
    name = answer("ls")["caches"][0]["name"]
    image = here / "pictures" / "test" / "dog" / "03.png"
    digest = hashlib.sha256(image.read_bytes()).hexdigest().upper()
    featcache("label", name, write(here / "a.csv", "id,age\ntest/dog/03.png,5\n"))
    output = answer("label", name, write(here / "b.csv", f"sum,weight\n{digest},6\n"), "--key", "sum", "--on", "digest")
    assert output["matched"] == 1
    path = Path(answer("info", name)["path"])
    for target, value in (("age", 5.0), ("weight", 6.0)):
        assert values_of(path, target, "test")["test/dog/03.png"] == value
    assert answer("verify", name, "--full")["sound"]
    targets = {one["name"]: one for one in answer("info", name)["targets"]}
    assert targets["age"] == {"name": "age", "kind": "numbers", "names": [], "unlabelled": 47, "origin": "a.csv"}
    # No row was computed: the same extraction still finds all of them, and leaves the columns alone.
    assert answer("extract", *PIXELS)["computed"] == 0
    assert values_of(path, "age", "test")["test/dog/03.png"] == 5.0


def test_an_image_with_views_has_one_value(here: Path) -> None:
    featcache("extract", *PIXELS, "--views", "3")
    (path,) = (here / "data" / "features").glob("*.h5")
    featcache("label", path, write(here / "t.csv", "id,age\ntrain/cat/00.png,5\n"))
    with FeatureCache.open(path) as cache:
        split = cache["train"]
        assert split.target("age").decode()[:2] == [5.0, None]


def test_a_parquet_table_is_read_too(one_class: Path, here: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"id": ["train/cat/00.png", "train/cat/01.png"], "age": [1.5, float("nan")], "tags": [["a", "b"], None]}
    parquet.write_table(pyarrow.table(columns), here / "t.parquet")
    featcache("label", one_class, here / "t.parquet")
    assert values_of(one_class, "tags")["train/cat/00.png"] == ("a", "b")
    assert values_of(one_class, "age")["train/cat/01.png"] is None


def test_heads_learn_a_label_that_a_table_brings(cache: Path, here: Path) -> None:
    with FeatureCache.open(cache) as opened:
        ids = [one for split in opened for one in opened[split].ids]
    rows = "\n".join(f"{one},{'furry' if 'eel' not in one else 'wet'}" for one in ids)
    featcache("label", cache, write(here / "t.csv", f"id,label\n{rows}\n"))
    output = answer("train-head", cache.stem, "--head", "logreg")
    assert output["n"]["train"] > 0
    with FeatureCache.open(cache) as opened:
        assert opened.classes == ("furry", "wet")


def test_a_label_of_numbers_is_learned_as_numbers(cache: Path, here: Path) -> None:
    ids = [sample for split in ("train", "test") for sample in FeatureCache.open(cache)[split].ids]
    table = "id,label\n" + "".join(f"{sample},{number % 7 + 0.5}\n" for number, sample in enumerate(ids))
    featcache("label", cache, write(here / "t.csv", table))
    result = json.loads(featcache("train-head", cache.stem, "--head", "ridge", "--json").stdout)
    assert set(result["val"]) == {"r2", "loss"}


def test_readers_that_have_the_file_open_keep_what_was_there(one_class: Path, table: Path) -> None:
    with FeatureCache.open(one_class) as before:
        featcache("label", one_class, table)
        assert list(before.targets) == ["label"]
        assert before["train"].features[:].shape == (12, 192)
        assert before["train"].labels.tolist() == [0] * 12
    with FeatureCache.open(one_class) as after:
        assert "age" in after.targets


def test_it_is_there_in_python(one_class: Path, table: Path) -> None:
    done = package.label(one_class, table, columns=["age"], on="filename", key="file")
    assert [one.name for one in done.added] == ["age"]
    with FeatureCache.open(one_class) as cache:
        assert package.label(cache, remove="age").removed == ("age",)


# --- what is refused, and leaves the cache as it was ---------------------------------------------------------

WRONG = {
    "no such table": (["nowhere.csv"], None, "there is no table nowhere.csv"),
    "no table by its name": (["t.txt"], "id,age\n", "is not a table"),
    "empty": (["t.csv"], "", "no column that identifies the images"),
    "no rows": (["t.csv"], "id,age\n", "has no rows"),
    "no key": (["t.csv"], "person,age\na,1\n", "no column that identifies the images"),
    "another key": (["t.csv", "--key", "nme"], "name,age\na,1\n", "unknown column of t.csv 'nme'"),
    "another column": (["t.csv", "--column", "aeg"], "id,age\na,1\n", "unknown column of t.csv 'aeg'"),
    "only a key": (["t.csv"], "id,split\na,train\n", "has no column besides"),
    "twice the column": (["t.csv"], "id,age,age\na,1,2\n", "'age' occurs twice"),
    "a cell too many": (["t.csv"], "id,age\na,1,2\n", "expected 2 cells, got 3"),
    "nothing matched": (["t.csv"], "id,age\nnobody.png,1\n", "no row of t.csv matches an image"),
    "two values": (["t.csv"], "id,age\ntrain/cat/00.png,1\ntrain/cat/00.png,2\n", "contradicts itself"),
    "no number": (["t.csv", "--kind", "age=numbers"], "id,age\ntrain/cat/00.png,old\n", "expected numbers, got 'old'"),
    "unknown kind": (["t.csv", "--kind", "age=colour"], "id,age\ntrain/cat/00.png,1\n", "got age=colour"),
    "no kind": (["t.csv", "--kind", "numbers"], "id,age\ntrain/cat/00.png,1\n", "--kind NAME=KIND"),
    "kind of what is not added": (
        ["t.csv", "--kind", "b=text", "--column", "age"],
        "id,age,b\ntrain/cat/00.png,1,2\n",
        "is given for b",
    ),
    "a name that leaves its group": (["t.csv"], "id,../age\ntrain/cat/00.png,1\n", "cannot be called '../age'"),
    "unknown target": (["--remove", "age"], None, "unknown target 'age'"),
}


@pytest.mark.parametrize(("words", "text", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_refused_and_nothing_is_written(
    cache: Path, here: Path, words: list[str], text: str | None, message: str
) -> None:
    if text is not None:
        write(here / words[0], text)
    before = cache.read_bytes()
    # A kind that there is not is wrong whatever the table holds.
    error, _ = complaint("label", cache, *words, expect=2 if "=colour" in words[-1] or words[-1] == "numbers" else 1)
    assert message in error
    assert cache.read_bytes() == before
    assert {path.name for path in cache.parent.iterdir()} <= {cache.name, f"{cache.stem}.used"}


def test_a_file_name_that_two_images_have_is_an_error_that_names_both(cache: Path, here: Path) -> None:
    error, hint = complaint("label", cache, write(here / "t.csv", "file,age\n00.png,1\n"))
    assert "train/cat/00.png" in error and "train/dog/00.png" in error
    assert "--on id" in hint


def test_without_a_table_or_a_target_to_remove_the_usage_is_wrong(cache: Path) -> None:
    assert "--remove NAME" in featcache("label", cache, expect=2).stderr


def test_a_cache_that_is_not_there_or_not_finished_is_refused(unfinished: Path, table: Path) -> None:
    assert "no cache in" in complaint("label", "nothing", table)[0]
    assert "is not finished" in complaint("label", unfinished.stem, table)[0]


def test_it_never_imports_torch(one_class: Path, table: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from featcache.cli.app import app\n"
        f"try: app(['label', {str(one_class)!r}, {str(table)!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=one_class.parents[2])


def test_options_of_a_table_without_a_table_are_wrong_usage(cache: Path) -> None:
    error, _ = complaint("label", cache, "--remove", "label", "--column", "age", expect=2)
    assert "expected a table for --column" in error
