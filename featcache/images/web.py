"""What an http or https URL gives, whole or as an error, within a bounded time."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection, InvalidURL
from typing import IO, Any, Final
from urllib.parse import urlsplit

from featcache.errors import ImageError, one_line

DEADLINE_S: Final = 120.0
"""For one URL in all: tries, waits between them and redirects together."""

SCHEMES: Final = ("http", "https")
_EXPECTED: Final = "expected http://host/path or https://host/path, what is not ASCII percent-encoded"
_TRIES, _SILENCE_S, _CHUNK_BYTES = 3, 30.0, 2**18


class _Fault(Exception):
    """What another try may cure; its text says what it was."""


class _Attempt:
    """One try: the sockets that it opened, to be cut from another thread, and what came of it."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._over = False
        self.content: bytes | None = None
        self.error: BaseException | None = None

    def run(self, work: Callable[[], bytes]) -> None:
        try:
            self.content = work()
        except BaseException as error:  # Raised where it is waited for.
            self.error = error

    def note(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self._over:
            connected.close()
            raise TimeoutError("time is up")

    def cut(self) -> None:
        self._over = True
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                # The plain socket's: that of TLS would take from the reader what it is reading with.
                socket.socket.shutdown(one, socket.SHUT_RDWR)


class _Noting(HTTPConnection):
    """Lets an attempt know its socket."""

    def __init__(self, *args: Any, attempt: _Attempt, **options: Any) -> None:
        super().__init__(*args, **options)
        self._attempt = attempt

    def connect(self) -> None:
        super().connect()
        self._attempt.note(self.sock)


class _NotingTls(_Noting, HTTPSConnection):
    """The same for https."""


class _Opener(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https, and lets an attempt know the sockets."""

    def __init__(self, attempt: _Attempt) -> None:
        urllib.request.HTTPHandler.__init__(self)
        self._attempt = attempt

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_Noting, attempt=self._attempt), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_NotingTls, attempt=self._attempt), req, context=_tls())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only to http and https: urllib's own goes to ftp as well."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        # urllib would read the redirect's own body to its end, however long.
        fp.close()
        _require_web(newurl, f"{req.full_url}: leads to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    url: str, *, most_bytes: int, deadline_s: float = DEADLINE_S, wait: Callable[[float], None] = time.sleep
) -> bytes:
    """The body that a URL gives. Network faults and errors of the server (5xx) are tried again, three times in all.

    Args:
        url: http or https; redirects are followed to no other scheme.
        most_bytes: a longer body is refused, by its announced length before it is read.
        deadline_s: everything together takes no longer, whatever the server does.
        wait: sleeps between tries.

    Raises:
        ImageError: naming the URL: it is none that can be asked, the server refuses it or stays ill, the body is too
            long or cut short, or time is up.
    """
    _require_web(url, url)
    ends = time.monotonic() + deadline_s
    for number in range(1, _TRIES + 1):
        try:
            return _in_time(partial(_body, url, most_bytes), ends, f"{url}: not read within {deadline_s:g} s")
        except _Fault as fault:
            if number == _TRIES:
                raise ImageError(f"{url}: {fault}", hint="try again later") from fault
        wait(min(2.0**number, max(0.0, ends - time.monotonic())))
    raise AssertionError("unreachable")


def _require_web(url: str, what: str) -> None:
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise ImageError(f"{what}: not a URL: {error}", hint=_EXPECTED) from error
    if scheme not in SCHEMES:
        raise ImageError(f"{what}: expected http or https, got {scheme or 'no scheme'}", hint="download it yourself")
    if not host:
        raise ImageError(f"{what}: not a URL: no host", hint=_EXPECTED)


def _in_time(work: Callable[[_Attempt, float], bytes], ends: float, too_late: str) -> bytes:
    # A thread of its own: a server that sends a byte now and then keeps any timeout of a socket from ever passing, and
    # looking up a host's name knows no timeout at all.
    attempt, left = _Attempt(), max(0.0, ends - time.monotonic())
    thread = threading.Thread(target=attempt.run, args=(partial(work, attempt, left),), daemon=True)
    try:
        if left:
            thread.start()
            thread.join(left)
        # Before it is cut: what a cut connection gave may look whole.
        finished = bool(left) and not thread.is_alive()
    finally:
        attempt.cut()
    if finished and attempt.error is not None:
        raise attempt.error
    if not finished or attempt.content is None:
        raise ImageError(too_late, hint="try again later, or download it yourself")
    return attempt.content


def _body(url: str, most_bytes: int, attempt: _Attempt, left: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "featcache"})
    try:
        with _director(attempt).open(request, timeout=min(left, _SILENCE_S)) as answer:
            return _whole(answer, url, most_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
        raise _Fault(message) if error.code >= 500 else ImageError(f"{url}: {message}") from error
    except InvalidURL as error:
        raise ImageError(f"{url}: not a URL: {one_line(error)}", hint=_EXPECTED) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Fault(f"cannot be read: {one_line(reason) if isinstance(reason, Exception) else reason}") from error
    except ValueError as error:
        raise ImageError(f"{url}: not a URL: {one_line(error)}", hint=_EXPECTED) from error


def _director(attempt: _Attempt) -> urllib.request.OpenerDirector:
    # Not `build_opener`, which would add ftp, file and data.
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Opener(attempt),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    return director


def _whole(answer: HTTPResponse, url: str, most_bytes: int) -> bytes:
    announced = answer.length
    if announced is not None and announced > most_bytes:
        raise ImageError(f"{url}: {announced:,} bytes, at most {most_bytes:,} are read")
    chunks: list[bytes] = []
    total = 0
    while chunk := answer.read(_CHUNK_BYTES):
        chunks.append(chunk)
        total += len(chunk)
        if total > most_bytes:
            raise ImageError(f"{url}: more than {most_bytes:,} bytes, which is the most that is read")
    if announced is not None and total < announced:
        raise _Fault(f"cut short: {total:,} of {announced:,} bytes came")
    if announced is None and not total:
        # So it looks where the connection broke within the headers.
        raise _Fault("cut short: nothing came")
    return b"".join(chunks)


@cache
def _tls() -> ssl.SSLContext:
    # Reading the system's certificates takes longer than a small image.
    return ssl.create_default_context()
