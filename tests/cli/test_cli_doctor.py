"""`featcache doctor`: what it reports of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import answer, featcache

from featcache.extraction import checkup


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Less patience: what is measured in a moment is less exact."""
    examine = checkup.examine
    monkeypatch.setattr(checkup, "examine", lambda *args, **options: examine(*args, **options, moment_s=0.05))
    monkeypatch.setattr(checkup, "_DISK_BYTES", 2 << 20)
    yield


def test_it_reports_the_machine_and_what_to_expect() -> None:
    output = answer("doctor")
    assert output["cores"] >= 1
    assert output["threads"] >= 1
    assert output["precisions"]["fp32"] is True
    assert output["precisions"][output["precision"]] is True
    assert {"python", "torch", "pillow"} <= set(output["versions"])
    assert output["decode_images_per_s"] > 0
    assert output["disk_mb_per_s"] > 0
    assert list(output["expected"]) == ["vgg16", "inception_v3"]
    for speed in output["expected"].values():
        assert speed["images_per_s"] > 0
        assert speed["estimate"] is True


def test_without_json_a_person_reads_it() -> None:
    shown = featcache("doctor").stdout
    for line in ("device", "precision", "cores", "BLAS", "C++ compiler", "decoding", "disk", "vgg16", "inception_v3"):
        assert f"\n{line} " in f"\n{shown}"
    assert "(estimate: " in shown


def test_nothing_is_left_behind(here: Path) -> None:
    before = sorted(here.rglob("*"))
    featcache("doctor")
    assert sorted(here.rglob("*")) == before


def test_what_is_wrong_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.backbones.devices.cores", lambda: 1000)
    result = featcache("doctor", "--quiet")
    assert "warning: computing with 1 thread on 1000 cores" in result.stderr


def test_a_machine_without_a_compiler_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert answer("doctor")["compiler"] is None


def test_a_disk_that_cannot_be_written_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert answer("doctor")["disk_mb_per_s"] is None
    assert "cannot be written" in featcache("doctor").stdout


def test_a_rate_counts_whole_rounds_after_the_first() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        time.sleep(0.01)

    rate = checkup._rate(work, 0.05)
    assert 0 < rate <= 100
    assert len(calls) >= 2
