"""What a notebook shows of a cache: its splits and layers, with every text escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from cache_samples import LAYERS, a_spec, make_cache

from featcache.cache.reader import FeatureCache
from featcache.cache.spec import LayerSpec


class Reading(HTMLParser):
    """Collects the rows of all tables, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("th", "td"):
            self.rows[-1].append(data)


def test_a_notebook_shows_splits_and_layers(tmp_path: Path) -> None:
    with FeatureCache.open(make_cache(tmp_path / "c.h5")) as cache:
        html = cache._repr_html_()
    assert "vgg16 on cifar10" in html
    assert Reading(html).rows == [
        ["split", "rows"],
        ["train", "40"],
        ["test", "12"],
        ["target", "kind", "names", "rows without a value"],
        ["label", "classes", "3", "0"],
        ["layer", "shape", "features", "stored as"],
        ["avgpool", "4 x 2 x 2", "16", "float16"],
        ["features.30", "6", "6", "float16"],
    ]


def test_names_from_the_file_are_text_and_no_html(tmp_path: Path) -> None:
    layer = LayerSpec(name="<script>x", weights=None, shape=LAYERS[0].shape)
    spec = a_spec(backbone="<b>net", layers=(layer,))
    with FeatureCache.open(make_cache(tmp_path / "a&b<i>.h5", spec, set_name="<img onerror=x>")) as cache:
        read = Reading(cache._repr_html_())
    assert not read.tags & {"script", "b", "i", "img"}
    assert ["<script>x", "4 x 2 x 2", "16", "float16"] in read.rows
