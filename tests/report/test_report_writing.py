"""The content of a page, and its notes about missing, damaged or changed files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_workspace import CLASSES, Workspace, data_of

import featcache
from featcache import files
from featcache.analysis import Audit, Finding, Section
from featcache.errors import HeadError, ReportError, UnknownName
from featcache.heads.metric_records import ClassMetrics
from featcache.heads.records import Predictions
from featcache.images import ArraySource, Sample
from featcache.report import image_sets, write_report, writing
from featcache.runs.files import predictions_bytes
from featcache.runs.run import Run


def text_of(page: Path) -> str:
    """The text of a page, without tags and data."""
    body = re.sub(r"<(script|style|svg)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"<[^>]*>", " ", body)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str]]]] = []

    @classmethod
    def of(cls, page: str) -> list[tuple[str, list[tuple[str, str]]]]:
        parser = cls()
        parser.feed(page)
        return parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [(name, value or "") for name, value in attrs]))


# --- the content -----------------------------------------------------------------------------------------


def test_a_page_is_self_contained(workspace: Workspace, runs: tuple[Run, Run], tmp_path: Path) -> None:
    written = workspace.report(*runs, path=tmp_path / "report.html")
    page = written.path.read_text()
    tags = Tags.of(page)
    assert not {tag for tag, _ in tags} & {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    attributes = [(name, value) for _, pairs in tags for name, value in pairs if not name.startswith("xmlns")]
    assert not {name for name, _ in attributes} & {"src", "srcset", "action", "xlink:href"}
    assert all(value.startswith("#") for name, value in attributes if name == "href")
    assert not [value for _, value in attributes if "://" in value or "url(" in value]
    assert "@import" not in page
    assert written.nbytes == written.path.stat().st_size < 5_000_000
    assert (written.runs, written.images, written.pictures, written.notes) == (2, 24, 24, ())
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_page_shows_the_numbers_of_the_runs(workspace: Workspace, runs: tuple[Run, Run], tmp_path: Path) -> None:
    page = text_of(workspace.report(*runs, path=tmp_path / "report.html").path)
    for run in runs:
        measured = run.metrics("test")
        assert isinstance(measured, ClassMetrics)
        assert f"{100 * measured.accuracy:.2f} %" in page
        assert f"{100 * measured.calibration_error:.1f} %" in page
        for value in measured.recall:
            assert value is None or f"{100 * value:.1f} %" in page


def test_predictions_in_the_data_are_those_of_the_run(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    data = data_of(workspace.report(run, path=tmp_path / "report.html").path)
    predictions, images = run.predictions("test"), data["imageSets"][0]
    assert images["ids"] == list(predictions.ids)
    assert images["labels"] == predictions.targets.tolist()
    assert data["runs"][0]["predicted"] == predictions.outputs.argmax(axis=1).tolist()
    assert images["classes"] == list(CLASSES)


@pytest.mark.parametrize("words", ["</script><script>alert(1)</script>", "<!--", "a\u2028b", "{{ 7 * 7 }}", "'\"&<>"])
def test_no_class_name_is_interpreted_as_html(words: str, workspace: Workspace, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    labels = [0, 1] * 20
    source = ArraySource(
        {"train": (pixels[:28], labels[:28]), "test": (pixels[28:], labels[28:])}, classes=[words, "b"]
    )
    cache = featcache.extract(source, "pixels", data_dir=tmp_path / "data")
    run = workspace.train("ridge", cache)
    written = workspace.report(run, path=tmp_path / "report.html")
    page = written.path.read_text()
    assert data_of(written.path)["imageSets"][0]["classes"] == [words, "b"]
    assert page.count("<script") == page.count("</script") == 2
    assert "<!--" not in page
    # A cache of pixels contains its pictures, so they are shown although the arrays cannot be read again.
    assert written.pictures == 12


def test_runs_on_the_same_images_share_pictures_but_not_maps(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    cache = featcache.extract(workspace.pictures, "pixels", image_size=6, data_dir=tmp_path / "data")
    other = workspace.train("ridge", cache)
    written = workspace.report(run, other, path=tmp_path / "report.html")
    data = data_of(written.path)
    assert len(data["imageSets"]) == 1
    assert written.pictures == 24
    assert [one["map"] for one in data["runs"]] == [0, 1]
    assert len(data["imageSets"][0]["maps"]) == 2


def test_without_a_test_split_a_run_is_evaluated_on_val(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.extract_pixels(splits=("train",)) as cache:
        run = workspace.train("ridge", cache)
    written = workspace.report(run, path=tmp_path / "report.html")
    assert data_of(written.path)["imageSets"][0]["ids"] == list(run.predictions("val").ids)
    assert written.pictures == written.images == run.training.images["val"]
    assert "evaluated on 10 val images: " in " ".join(text_of(written.path).split())


def test_no_map_is_drawn_if_none_is_requested(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    written = workspace.report(run, path=tmp_path / "report.html", map="none")
    assert data_of(written.path)["imageSets"][0]["maps"] == [None]
    with pytest.raises(ReportError, match="expected a map by pca"):
        workspace.report(run, path=tmp_path / "report.html", map="pac")


def test_an_audit_that_was_made_is_shown(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    samples = tuple(Sample(id=f"{split}/emu/00.png", split=split, label=2) for split in ("train", "test"))
    leak = Finding(kind="leak", samples=samples, score=1.0, reason="the same <bytes>")
    audit = Audit(
        cache="pictures",
        layer="pixels",
        classes=CLASSES,
        counts={"train": {"emu": 3}, "test": {"emu": 1}},
        sections=(Section(kind="leak", findings=(leak,), note="by digest"),),
        seconds=0.1,
    )
    written = workspace.report(run, path=tmp_path / "report.html", audit=audit)
    assert "the same &lt;bytes&gt;" in written.path.read_text()
    shown = data_of(written.path)["imageSets"][-1]
    assert shown["ids"] == [sample.id for sample in samples]
    assert shown["tiles"] == [0, 1]


def test_a_cache_is_audited_on_request(workspace: Workspace, tmp_path: Path) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    written = own.report(run, path=tmp_path / "report.html", audit=True)
    shown = data_of(written.path)["imageSets"][-1]
    assert shown["ids"]
    assert set(shown["ids"]) <= set(workspace.colours)
    assert min(shown["tiles"]) >= 0
    assert "Leaks: the same image in several splits" in text_of(written.path)
    shutil.rmtree(own.root / "data")
    gone = own.report(run, path=tmp_path / "report.html", audit=True)
    assert any(note.startswith("The audit is missing.") for note in gone.notes)


# --- missing and changed files ---------------------------------------------------------------------------


def copy_workspace(workspace: Workspace, tmp_path: Path) -> tuple[Workspace, Run]:
    """A copy of the workspace, with a run in it."""
    own = Workspace(root=tmp_path / "own", colours=workspace.colours)
    shutil.copytree(workspace.pictures, own.pictures)
    return own, own.train("ridge", own.extract_pixels())


def not_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read pictures from the images, as for the features of a network."""
    monkeypatch.setattr("featcache.report.thumbnails.PIXELS", "nothing")


def test_pictures_come_from_the_images(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_pixels(monkeypatch)
    written = workspace.report(run, path=tmp_path / "report.html")
    assert (written.pictures, written.notes) == (24, ())


def test_a_missing_cache_is_noted(workspace: Workspace, tmp_path: Path) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    shutil.rmtree(own.root / "data")
    written = own.report(run, path=tmp_path / "report.html")
    assert (written.images, written.pictures) == (24, 0)
    assert data_of(written.path)["imageSets"][0]["maps"] == [None]
    (note,) = written.notes
    assert "is missing" in note
    assert note in " ".join(text_of(written.path).split())


def test_a_cache_that_was_moved_is_found(workspace: Workspace, tmp_path: Path) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    (own.root / "data").rename(own.root / "elsewhere")
    written = own.report(run, path=tmp_path / "report.html", data_dir=own.root / "elsewhere")
    assert (written.pictures, written.notes) == (24, ())


def test_a_damaged_cache_is_noted(workspace: Workspace, tmp_path: Path) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    Path(run.features.cache).write_bytes(b"no cache")
    (note,) = own.report(run, path=tmp_path / "report.html").notes
    assert "cannot be used" in note


def test_missing_and_changed_images_are_noted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    not_pixels(monkeypatch)
    Image.new("RGB", (12, 12), "red").save(own.pictures / "test" / "emu" / "00.png")
    (own.pictures / "test" / "emu" / "01.png").unlink()
    (own.pictures / "test" / "emu" / "02.png").write_bytes(b"")
    written = own.report(run, path=tmp_path / "report.html")
    assert written.pictures == 21
    assert written.notes == ("3 images have no picture: test/emu/00.png has changed.",)
    shutil.rmtree(own.pictures)
    written = own.report(run, path=tmp_path / "report.html")
    assert written.pictures == 0
    assert "The images cannot be read" in written.notes[0]


@pytest.mark.parametrize("change", ["relabelled", "renamed", "fewer"])
def test_changed_labels_are_noted(workspace: Workspace, tmp_path: Path, change: str) -> None:
    own, run = copy_workspace(workspace, tmp_path)
    before = data_of(own.report(run, path=tmp_path / "before.html").path)
    if change == "relabelled":
        (own.pictures / "test/emu/00.png").rename(own.pictures / f"test/{CLASSES[1]}/99.png")
        expected = "1 of 24 images are no longer in the cache"
    elif change == "renamed":
        for split in ("train", "test"):
            (own.pictures / split / "emu").rename(own.pictures / split / "fox")
        expected = "has other classes now"
    else:
        shutil.rmtree(own.pictures / "test" / "emu")
        expected = "8 of 24 images are no longer in the cache"
    own.extract_pixels().close()
    written = own.report(run, path=tmp_path / "report.html")
    assert any(expected in note for note in written.notes)
    after = data_of(written.path)
    assert after["imageSets"][0]["labels"] == before["imageSets"][0]["labels"]
    assert after["imageSets"][0]["classes"] == list(CLASSES)


# --- damaged runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "history.csv", "predictions_test.npz"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"PK\x03\x04"])
def test_damaged_records_are_an_error_and_nothing_is_overwritten(
    workspace: Workspace, run: Run, tmp_path: Path, name: str, content: bytes | None
) -> None:
    page = tmp_path / "report.html"
    page.write_text("the old page")
    (run.folder / name).unlink() if content is None else (run.folder / name).write_bytes(content)
    if name == "history.csv" and content is not None:
        (run.folder / name).write_bytes(b"epoch\n1\n" + content)
    with pytest.raises(HeadError):
        write_report(run.folder, page, data_dir=workspace.root / "data")
    assert page.read_text() == "the old page"


@pytest.mark.parametrize("damage", ["rows", "classes", "labels", "nan"])
def test_predictions_that_do_not_fit_are_refused(workspace: Workspace, run: Run, tmp_path: Path, damage: str) -> None:
    predictions = run.predictions("test")
    shares, labels = predictions.outputs.copy(), predictions.targets.copy()
    if damage == "rows":
        shares = shares[:-1]
    elif damage == "classes":
        shares = shares[:, :2]
    elif damage == "labels":
        labels[0] = 3
    else:
        shares[0, 0] = np.nan
    changed = Predictions(ids=predictions.ids, targets=labels, outputs=shares)
    (run.folder / "predictions_test.npz").write_bytes(predictions_bytes(changed))
    with pytest.raises(HeadError, match=r"predictions of the run .* are damaged"):
        workspace.report(run, path=tmp_path / "report.html")


def test_a_damaged_head_is_noted_together_with_its_results(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    (run.folder / "head.safetensors").write_bytes(b"no weights")
    page = workspace.report(run, path=tmp_path / "report.html").path
    assert "head.safetensors cannot be used" in text_of(page)


def test_a_damaged_run_among_all_runs_is_left_out_and_noted(run: Run, workspace: Workspace, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    shutil.copytree(run.folder, runs_dir / "whole-1")
    shutil.copytree(run.folder, runs_dir / "broken-2")
    (runs_dir / "broken-2" / "metrics.json").write_text("{")
    written = workspace.report(path=tmp_path / "report.html", runs_dir=runs_dir)
    assert written.runs == 1
    assert "broken-2 is left out" in written.notes[0]
    shutil.rmtree(runs_dir / "whole-1")
    with pytest.raises(HeadError, match="no run to report"):
        workspace.report(path=tmp_path / "report.html", runs_dir=runs_dir)


def test_a_run_that_is_not_there_is_an_error(workspace: Workspace, runs: tuple[Run, Run], tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        write_report("nothing-like-it", tmp_path / "report.html", runs_dir=workspace.root / "runs")


def test_runs_that_cannot_be_compared_are_noted(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    with workspace.extract_pixels(splits=("train",)) as cache:
        other = workspace.train("ridge", cache)
    page = text_of(workspace.report(run, other, path=tmp_path / "report.html").path)
    assert "not comparable: it was evaluated on" in page


# --- large pages -------------------------------------------------------------------------------------------


def test_too_many_images_are_reduced_and_noted(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sets, "MOST_IMAGES", 12)
    monkeypatch.setattr(image_sets, "MOST_MISTAKES", 4)
    written = workspace.report(run, path=tmp_path / "report.html")
    data = data_of(written.path)
    assert written.images == written.pictures == len(data["imageSets"][0]["ids"]) == 12
    assert written.notes[0].startswith("12 of 24 test images are shown")
    predictions = run.predictions("test")
    confidence = np.where(
        predictions.outputs.argmax(axis=1) == predictions.targets, -1, predictions.outputs.max(axis=1)
    )
    worst = {predictions.ids[row] for row in np.argsort(-confidence)[:4] if confidence[row] >= 0}
    assert worst <= set(data["imageSets"][0]["ids"])
    # The numbers still count every image.
    assert sum(int(count) for count in re.findall(r'data-images="(\d+)"', written.path.read_text())) == 24


def test_a_hundred_thousand_images_are_reduced(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 100_000)
    shares = random.dirichlet(np.ones(3), 100_000).astype(np.float32)
    ids = tuple(f"test/{number:06d}" for number in range(100_000))
    many = Predictions(ids=ids, targets=labels, outputs=shares)
    (run.folder / "predictions_test.npz").write_bytes(predictions_bytes(many))
    written = workspace.report(run, path=tmp_path / "report.html")
    assert written.images == image_sets.MOST_IMAGES
    assert written.nbytes < 5_000_000
    assert written.notes[0].startswith("10,000 of 100,000 test images are shown")


def test_pictures_are_left_out_if_the_page_would_be_too_large(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = workspace.report(run, path=tmp_path / "report.html").nbytes
    sheets = sum(len(sheet) for sheet in data_of(tmp_path / "report.html")["imageSets"][0]["sheets"])
    # Besides the pictures, some space is reserved for numbers and notes.
    most = whole - sheets // 3 + 2_096
    monkeypatch.setattr(writing, "MOST_BYTES", most)
    written = workspace.report(run, path=tmp_path / "report.html")
    assert written.nbytes <= most
    assert 0 < written.pictures < 24
    assert "more would make the page too large" in written.notes[-1]


def test_many_runs_are_in_the_table_and_the_best_in_detail(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MOST_DETAILED", 2)
    several = [workspace.train("ridge", val_fraction=share) for share in (0.2, 0.3, 0.4, 0.5)]
    written = workspace.report(*several, path=tmp_path / "report.html")
    data = data_of(written.path)
    assert (written.runs, len(data["runs"])) == (4, 2)
    assert "2 more are only in the table" in written.notes[0]
    assert written.path.read_text().count('<tr class="best">') == 1


# --- atomic writing ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_error_leaves_the_old_page(
    workspace: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    page = tmp_path / "report.html"
    page.write_text("the old page")

    def failing(fd: int) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(files, "system", replace(files.system, fsync=failing))
        with pytest.raises(ReportError) as raised:
            workspace.report(run, path=page)
    assert "--output" in str(raised.value.hint)
    assert page.read_text() == "the old page"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["report.html", run.folder.name])


def test_a_folder_cannot_be_the_page(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ReportError):
        workspace.report(run, path=tmp_path)


# --- pictures for papers, benchmarks, notebooks ------------------------------------------------------------


def test_charts_are_written_for_papers(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    written = workspace.report(run, path=tmp_path / "report.html", figures=tmp_path / "figures")
    names = {path.stem for path in written.files}
    assert {path.suffix for path in written.files} == {".svg", ".pdf", ".png"}
    assert {"ridge-calibration", "ridge-confusion", "ridge-recall"} <= names
    assert any(name.startswith("map-pca-pixels") for name in names)
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.width == pytest.approx(3.3 * 300, abs=4)
        pdf = (tmp_path / "figures" / f"{name}.pdf").read_bytes()
        box = re.search(rb"MediaBox \[0 0 ([\d.]+)", pdf)
        assert box is not None and float(box[1]) == pytest.approx(3.3 * 72, abs=1)
        assert (tmp_path / "figures" / f"{name}.svg").read_text().startswith("<svg")
    assert "currentColor" not in (tmp_path / "figures" / "ridge-confusion.svg").read_text()


TOTAL = {"one_head_s": 2.5, "all_heads_s": 25.0, "scaled": True, "multiplied": False}
GAIN = {"warm_epoch": 123.4, "cold_all_heads": 9.87}
BENCHMARK = {
    "format": 1,
    "scenario": {"heads": 10},
    "machine": {"cores": 2, "processor": "a processor", "date": "2026-11-24"},
    "summary": {"totals": dict.fromkeys(("notebook", "cold", "warm"), TOTAL), "comparisons": {"notebook": GAIN}},
}


def test_a_benchmark_is_drawn(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(BENCHMARK))
    written = workspace.report(run, path=tmp_path / "report.html", benchmark=tmp_path / "result.json")
    page = text_of(written.path)
    assert "123 times per epoch with the cache present, 9.9 times for all 10 heads, extraction included" in page
    assert "End to end and cached" in page


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"format": 2}', '{"format": 1}'])
def test_a_file_that_is_no_benchmark_is_refused(
    workspace: Workspace, run: Run, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ReportError, match=r"result\.json"):
        workspace.report(run, path=tmp_path / "report.html", benchmark=tmp_path / "result.json")


def test_a_run_writes_its_own_report(run: Run) -> None:
    path = run.report(map="none").path
    assert path == run.folder / "report.html"
    assert path.read_text().startswith("<!doctype html>")


def test_a_run_shows_itself_in_a_notebook(run: Run) -> None:
    shown = replace(run, folder=Path("<b>runs</b>"))._repr_html_()
    assert f"{100 * run.training.val.accuracy:.2f} %" in shown
    assert "&lt;b&gt;runs" in shown
    assert "<b>" not in shown


def test_a_report_needs_no_torch(workspace: Workspace, run: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from featcache import write_report; "
        f"write_report({str(run.folder)!r}, {str(tmp_path / 'report.html')!r}); "
        "assert not {'torch', 'pytorch_lightning', 'torchvision'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
