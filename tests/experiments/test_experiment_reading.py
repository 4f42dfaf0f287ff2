"""A TOML file becomes the records of options, or an error that names the file and the table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from experiment_files import DIGITS, write_experiment
from PIL import Image
from safetensors.numpy import save_file

import featcache
from featcache.config import options_of
from featcache.errors import InvalidOption
from featcache.experiments.reading import LEFT_OUT, TABLES, read_experiment
from featcache.extraction.request import Request

PAGE = Path(featcache.__file__).parents[1] / "docs" / "experiments.md"

WHOLE = """
[images]
dataset = "digits"
limit = 80
splits = ["train", "test"]

[[backbones]]
backbone = "resnet18"
layers = ["layer3", "layer4"]
pool = "avg"
weights = "random:3"
dtype = "float32"

[[beside]]
backbone = "pixels"

[extract]
batch_size = 4
on_error = "skip"

[head]
lr = 1
target = "label"

[training]
threads = 1

[grid]
head = ["linear", "mlp:8,4"]
layer = ["layer3", ["layer3", "layer4"]]

[sweep]
seeds = 2

[report]
map = "none"
"""


def test_a_table_is_a_record_of_options(tmp_path: Path) -> None:
    read = read_experiment(write_experiment(tmp_path, WHOLE), data_dir=tmp_path / "data")
    images = {"dataset": "digits", "limit": 80, "splits": ("train", "test"), "data_dir": tmp_path / "data"}
    resnet = {"layers": ("layer3", "layer4"), "pool": "avg", "weights": "random:3", "dtype": "float32"}
    assert read.requests == (Request(backbone="resnet18", **resnet, **images),)  # type: ignore[arg-type]
    assert read.beside == (Request(backbone="pixels", **images),)  # type: ignore[arg-type]
    assert (read.execution.batch_size, read.execution.on_error) == (4, "skip")
    assert (read.head, read.training, read.sweep) == ({"lr": 1, "target": "label"}, {"threads": 1}, {"seeds": 2})
    assert read.grid == {"head": ["linear", "mlp:8,4"], "layer": ["layer3", ["layer3", "layer4"]]}
    assert (read.report.map, read.output) == ("none", None)


def test_without_a_grid_and_with_one_backbone_it_is_one_head(tmp_path: Path) -> None:
    assert read_experiment(write_experiment(tmp_path, DIGITS)).sweep is None
    assert read_experiment(write_experiment(tmp_path, f"{DIGITS}[sweep]")).sweep == {}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[images", "is not TOML: ", "docs/experiments.md"),
        ("limit = 3", "unknown table 'limit'", "known: backbones, beside"),
        (f"{DIGITS}[heads]", "unknown table 'heads'", "did you mean head"),
        ("images = 3", "expected a table [images], got images = 3", "docs/experiments.md"),
        ('[backbones]\nbackbone = "pixels"', "expected a table [[backbones]], got backbones = {", "docs"),
        ('[[backbones]]\nbackbone = "pixels"', "expected [images] with dataset, got none", "dataset = "),
        ('[images]\ndataset = "digits"', "expected [[backbones]], got none", "backbone = "),
        ('backbones = []\n[images]\ndataset = "digits"', "expected [[backbones]], got none", "backbone = "),
        (f"{DIGITS}[[backbones]]\npool = 'avg'", "[backbones]: expected backbone, got none", "backbone = "),
        (f"{DIGITS}layer = 'layer4'", "[backbones] has no option 'layer'", "did you mean layers"),
        (f"{DIGITS}views = 0", "[backbones]: expected --views of at least 1, got 0", "docs"),
        (f"{DIGITS}[[backbones]]\nbackbone = 'pixels'", "[backbones]: expected different backbones", "remove"),
        (DIGITS.replace("80", "'many'"), "[images]: expected --limit a whole number of at least 1, got 'many'", "docs"),
        (DIGITS.replace("digits", "digts"), "[images]: unknown data set 'digts'", "did you mean digits"),
        (f"{DIGITS}[extract]\nshard = '0/2'", "[extract] has no option 'shard'", ""),
        (f"{DIGITS}[extract]\non_error = 'stop'", "[extract]: expected --on-error fail or skip, got 'stop'", ""),
        (f"{DIGITS}[head]\nleraning_rate = 1", "[head] has no option 'leraning_rate'", ""),
        (f"{DIGITS}[head]\nlr = 0.0", "[head]: expected --lr above 0, got 0.0", ""),
        (f"{DIGITS}[head]\nlr = nan", "[head]: expected --lr a number such as 1e-3 above 0, got nan", ""),
        (f"{DIGITS}[head]\nhead = 'liner'", "[head]: unknown head 'liner'", "did you mean linear"),
        (f"{DIGITS}[head]\nhead = 'knn'\nlr = 0.001", "[head]: the head knn is solved", "leave out --lr"),
        (f"{DIGITS}[head]\nown_loss = 3", "[head]: the loss 3 of this head is not known here", "pass it"),
        (f"{DIGITS}[head]\nhead_arguments = 3", "[head]: expected head_arguments as a mapping", ""),
        (f"{DIGITS}[training]\nthreads = 'all'", "[training]: expected threads a whole number", ""),
        (f"{DIGITS}[head]\nhead = 'knn'\n[training]\nthreads = 1", "[head]: expected threads for a head", ""),
        (f"{DIGITS}[training]\nlogger = 'csv'\n[sweep]", "[training] has no option 'logger'", ""),
        (f"{DIGITS}[grid]\nlr = 0.1", "[grid]: expected a list of values for lr, got 0.1", "lr=[value, value]"),
        (f"{DIGITS}[grid]\nlrr = [0.1]", "[grid]: unknown option of a grid 'lrr'", "did you mean lr"),
        (f"{DIGITS}[grid]\nval_seed = [1]", "[grid]: val_seed cannot be varied", "--folds"),
        (f"{DIGITS}[grid]\nseed = [1]\n[sweep]\nseeds = 2", "[head] [grid]: --seeds and --grid seed", "leave one"),
        (f"{DIGITS}[sweep]\nseeds = 1000000000000", "[sweep]: expected --seeds between 1 and 10000, got 1", ""),
        (f"{DIGITS}[sweep]\nshots = [1]\nfolds = 3", "[sweep]: --folds and --shots are two ways", "take one"),
        (f"{DIGITS}[report]\nmap = 'lda'", "[report]: expected --map pca, tsne, umap or none, got 'lda'", ""),
        (f"{DIGITS}[report]\nopen = true", "[report] has no option 'open'", ""),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_the_place(
    text: str, message: str, hint: str, tmp_path: Path
) -> None:
    file = write_experiment(tmp_path, text)
    with pytest.raises(InvalidOption) as found:
        read_experiment(file, data_dir=tmp_path / "data")
    assert found.value.message.startswith(str(file))
    assert message in found.value.message
    assert hint in str(found.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[images]\ndataset = "caf\xe9"')
    for name, message in (("none.toml", "there is no file"), (".", "cannot be read"), ("latin.toml", "is not TOML")):
        with pytest.raises(InvalidOption, match=message):
            read_experiment(tmp_path / name)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    for name in "ab":
        (there / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(there / "photos" / name / "1.png")
    save_file({"x": np.zeros(1, np.float32)}, there / "own.safetensors")
    text = """
    [images]
    dataset = "photos"
    [[backbones]]
    backbone = "vgg16"
    weights = "own.safetensors"
    [report]
    output = "pages/page.html"
    figures = "/elsewhere"
    """
    write_experiment(there, text)
    monkeypatch.chdir(tmp_path)
    read = read_experiment("there/experiment.toml", data_dir="data")
    assert Path.cwd() == tmp_path
    (request,) = read.requests
    assert (request.dataset, request.weights) == (str(there / "photos"), str(there / "own.safetensors"))
    assert (read.output, read.report.figures) == (there / "pages" / "page.html", Path("/elsewhere"))
    assert request.data_dir == Path("data")


def test_files_of_texts_for_the_classes_are_relative_to_the_file(tmp_path: Path) -> None:
    head = "text:a {}|texts.txt|~/tokenizer.json"
    text = f'{DIGITS}[head]\nhead = "{head}"\n[grid]\nhead = ["centroid", "{head}"]'
    experiment = read_experiment(write_experiment(tmp_path / "there", text))
    expected = f"text:a {{}}|{tmp_path / 'there' / 'texts.txt'}|{Path.home() / 'tokenizer.json'}"
    assert experiment.head["head"] == expected
    assert experiment.grid["head"] == ["centroid", expected]


def test_the_page_names_every_table_and_no_option_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `\[+(\w+)\]+`[^|]* \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {*TABLES, "grid"}
    for name, described in rows:
        known = {field.name for record in TABLES.get(name, ()) for field in options_of(record)}
        named = set(re.findall(r"`(\w+)`", described)) - {"extract", "report", "sweep"}
        if name not in ("grid", "report", "sweep"):
            assert named <= known - {*LEFT_OUT.get(name, ())}


@pytest.mark.parametrize(
    ("line", "message"),
    [("image = 'ab'", "unknown option 'image'"), ("images = 3", "expected a text for images, got 3")],
)
def test_what_a_file_expects_is_checked(tmp_path: Path, line: str, message: str) -> None:
    file = write_experiment(tmp_path, f"{DIGITS}\n[expected]\n{line}")
    with pytest.raises(InvalidOption, match=re.escape(message)):
        read_experiment(file)
