"""`fetch` returns the whole body of a URL or raises an error that names it, in bounded time, for any server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import ImageError
from featcache.images import open_images
from featcache.images.web import fetch

BODY = bytes(range(256)) * 40


class _Server(BaseHTTPRequestHandler):
    """Responds to each path in its own way; `seen` counts the requests."""

    seen: dict[str, int]

    def do_GET(self) -> None:
        self.seen[self.path] = self.seen.get(self.path, 0) + 1
        with contextlib.suppress(OSError):
            WAYS[self.path.split("/")[1]](self)

    def log_message(self, format: str, *args: object) -> None:
        return

    def answer(self, body: bytes = BODY, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def raw(self, sent: bytes) -> None:
        self.wfile.write(sent)

    def drip(self, before: bytes) -> None:
        self.wfile.write(before)
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    @property
    def first(self) -> bool:
        return self.seen[self.path] == 1

    @property
    def rest(self) -> str:
        return self.path.split("/", 2)[2]

    def break_off_first(self) -> None:
        if self.first:
            self.answer(BODY[:100], Content_Length=len(BODY))
        else:
            self.answer()

    def break_chunks_first(self) -> None:
        if self.first:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nabc")
        else:
            self.answer()

    def hang_up_first(self) -> None:
        if not self.first:
            self.answer()


WAYS: dict[str, Callable[[_Server], None]] = {
    "whole": _Server.answer,
    "unannounced": lambda it: it.answer(Content_Length=None),
    "status": lambda it: it.answer(b"", int(it.rest)),
    "ill": lambda it: it.answer() if it.seen[it.path] == 3 else it.answer(b"", 503),
    "to": lambda it: it.answer(b"", 302, Location=it.rest),
    "moved": lambda it: it.answer(b"", 301, Location="/whole"),
    "circle": lambda it: it.answer(b"", 302, Location="/circle"),
    "short_once": _Server.break_off_first,
    "short_chunks_once": _Server.break_chunks_first,
    "silent_once": _Server.hang_up_first,
    "short": lambda it: it.answer(BODY[:100], Content_Length=len(BODY)),
    "announces": lambda it: it.answer(b"abc", Content_Length=10**12),
    "drips_a_body": lambda it: it.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
    "drips_headers": lambda it: it.drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
    "drips_a_status": lambda it: it.drip(b""),
    "drips_chunks": lambda it: it.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n"),
    "drips_a_redirect": lambda it: it.drip(
        b"HTTP/1.1 302 Found\r\nContent-Length: 1000\r\nLocation: /drips_a_body\r\n\r\n"
    ),
    "continues": lambda it: it.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 3),
    "is_silent": lambda it: time.sleep(2),
    "no_http": lambda it: it.raw(b"220 mail.example\r\n"),
    "half_a_head": lambda it: it.raw(b"HTTP/1.1 200 OK\r\nContent-Ty"),
}


@pytest.fixture
def seen() -> dict[str, int]:
    return {}


@pytest.fixture
def server(seen: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Server,), {"seen": seen})) as running:
        running.daemon_threads, running.block_on_close = True, False
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def get(url: str, **options: Any) -> bytes:
    return fetch(url, **{"most_bytes": 10**6, "wait": lambda _: None, **options})


@pytest.mark.parametrize("path", ["whole", "unannounced", "moved"])
def test_a_body_is_complete_on_the_first_try(server: str, seen: dict[str, int], path: str) -> None:
    assert get(f"{server}/{path}") == BODY
    assert set(seen.values()) == {1}


def test_an_empty_body_is_a_body(server: str) -> None:
    assert get(f"{server}/status/200") == b""


def test_a_failing_server_is_tried_three_times_with_growing_waits(server: str) -> None:
    waited: list[float] = []
    assert get(f"{server}/ill", wait=waited.append) == BODY
    assert waited == [2.0, 4.0]


@pytest.mark.parametrize("path", ["short_once", "short_chunks_once", "silent_once"])
def test_an_incomplete_body_is_requested_again(server: str, seen: dict[str, int], path: str) -> None:
    assert get(f"{server}/{path}") == BODY
    assert seen == {f"/{path}": 2}


@pytest.mark.parametrize(
    ("path", "tries", "reason"),
    [
        ("status/500", 3, "the server answers 500 Internal Server Error"),
        ("status/503", 3, "the server answers 503 Service Unavailable"),
        ("status/404", 1, "the server answers 404 Not Found"),
        ("status/403", 1, "the server answers 403 Forbidden"),
        ("status/410", 1, "the server answers 410 Gone"),
        ("short", 3, "cut short: 100 of 10,240 bytes came"),
        ("half_a_head", 3, "cut short: nothing came"),
        ("no_http", 3, "cannot be read: "),
    ],
)
def test_only_temporary_errors_are_tried_again(
    server: str, seen: dict[str, int], path: str, tries: int, reason: str
) -> None:
    with pytest.raises(ImageError) as caught:
        get(f"{server}/{path}")
    assert caught.value.message.startswith(f"{server}/{path}: {reason}")
    assert seen == {f"/{path}": tries}


def test_an_unreachable_server_is_an_error_after_three_tries() -> None:
    waited: list[float] = []
    with pytest.raises(ImageError, match=r"^http://127\.0\.0\.1:9/x\.png: cannot be read: .*refused"):
        get("http://127.0.0.1:9/x.png", wait=waited.append)
    assert len(waited) == 2


@pytest.mark.parametrize(
    "path",
    [
        "drips_a_body",
        "drips_headers",
        "drips_a_status",
        "drips_chunks",
        "drips_a_redirect",
        "continues",
        "is_silent",
    ],
)
def test_the_deadline_holds_for_a_slow_server(server: str, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match=rf"/{path}: not read within 0\.4 s"):
        get(f"{server}/{path}", deadline_s=0.4)
    assert time.monotonic() - start < 1.5


def test_the_deadline_counts_all_tries_and_waits_together(server: str) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"status/500: not read within 0\.3 s"):
        get(f"{server}/status/500", deadline_s=0.3, wait=time.sleep)
    assert time.monotonic() - start < 1.5


def test_no_thread_is_left_running_after_a_slow_server(server: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(ImageError):
        get(f"{server}/drips_a_body", deadline_s=0.2)
    for _ in range(100):
        left = [one for one in set(threading.enumerate()) - before if "process_request_thread" not in one.name]
        if not left:
            return
        time.sleep(0.01)
    pytest.fail(f"still running: {left}")


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x.png", "file:///etc/hostname", "data:,x", "gopher://127.0.0.1/"])
def test_a_redirect_to_other_schemes_is_refused(server: str, seen: dict[str, int], place: str) -> None:
    with pytest.raises(ImageError, match=rf"^{server}/to/.*{place.split(':', 1)[0]}"):
        get(f"{server}/to/{place}")
    assert sum(seen.values()) == 1


@pytest.mark.parametrize("path", ["circle", "to/http://[", "to/http://"])
def test_a_redirect_that_leads_nowhere_is_an_error_that_names_the_url(server: str, path: str) -> None:
    with pytest.raises(ImageError) as caught:
        get(f"{server}/{path}")
    assert caught.value.message.startswith(f"{server}/{path}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://[",
        "http://[::1",
        "http://",
        "http:///x.png",
        "http://127.0.0.1:port/x.png",
        "http://127.0.0.1:99999/x.png",
        "http://127.0.0.1/a b.png",
        "http://127.0.0.1/ü.png",
        "http://a..b/x.png",
        "ftp://127.0.0.1/x.png",
        "file:///etc/hostname",
        "data:,x",
        "x.png",
        "",
    ],
)
def test_an_invalid_url_is_an_error_at_once(url: str) -> None:
    waited: list[float] = []
    with pytest.raises(ImageError) as caught:
        get(url, wait=waited.append)
    assert caught.value.message.startswith(f"{url}: ") and caught.value.hint
    assert not waited


@pytest.mark.parametrize("path", ["announces", "whole", "unannounced"])
def test_a_longer_body_than_the_limit_is_refused(server: str, seen: dict[str, int], path: str) -> None:
    with pytest.raises(ImageError, match=rf"/{path}: .*bytes.* 10,239|more than 10,239 bytes"):
        get(f"{server}/{path}", most_bytes=len(BODY) - 1)
    assert sum(seen.values()) == 1


def test_an_announced_length_is_refused_before_anything_is_read(server: str) -> None:
    start = time.monotonic()
    with pytest.raises(ImageError, match="1,000 bytes, at most 999 are read"):
        get(f"{server}/drips_a_body", most_bytes=999)
    assert time.monotonic() - start < 1


def test_a_body_of_exactly_the_limit_is_read(server: str) -> None:
    assert get(f"{server}/unannounced", most_bytes=len(BODY)) == BODY


@pytest.mark.parametrize("url", ["http://[", "https://[::1/x.png", "HTTP://127.0.0.1:port/x.png"])
def test_an_invalid_url_in_a_table_is_an_error_only_when_it_is_read(tmp_path: Path, url: str) -> None:
    (tmp_path / "list.csv").write_text(f"url\n{url}\n")
    source = open_images(tmp_path / "list.csv", datasets_dir=tmp_path)
    with pytest.raises(ImageError, match="not a URL"):
        source.read(source.samples("train")[0])
