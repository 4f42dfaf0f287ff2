"""Downloads the content of an http or https URL completely, or raises an error, within a bounded time."""

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
"""The total time for one URL, with retries, waits and redirects."""

SCHEMES: Final = ("http", "https")
_EXPECTED: Final = "expected http://host/path or https://host/path, with other characters than ASCII percent-encoded"
_TRIES, _SILENCE_S, _CHUNK_BYTES = 3, 30.0, 2**18


class _TemporaryFault(Exception):
    """An error that another try may avoid; its text is the reason."""


class _Attempt:
    """One try: its sockets, which another thread can shut down, and its result."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._aborted = False
        self.content: bytes | None = None
        self.error: BaseException | None = None

    def run(self, work: Callable[[], bytes]) -> None:
        try:
            self.content = work()
        except BaseException as error:  # Raised again in the waiting thread.
            self.error = error

    def track(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self._aborted:
            connected.close()
            raise TimeoutError("time is up")

    def abort(self) -> None:
        self._aborted = True
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                # The method of the plain socket: that of a TLS socket would break the object that is being read.
                socket.socket.shutdown(one, socket.SHUT_RDWR)


class _TrackedConnection(HTTPConnection):
    """A connection that registers its socket with an attempt."""

    def __init__(self, *args: Any, attempt: _Attempt, **options: Any) -> None:
        super().__init__(*args, **options)
        self._attempt = attempt

    def connect(self) -> None:
        super().connect()
        self._attempt.track(self.sock)


class _TrackedTlsConnection(_TrackedConnection, HTTPSConnection):
    """The same for https."""


class _Opener(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https URLs, and registers the sockets with an attempt."""

    def __init__(self, attempt: _Attempt) -> None:
        urllib.request.HTTPHandler.__init__(self)
        self._attempt = attempt

    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_TrackedConnection, attempt=self._attempt), req)

    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(partial(_TrackedTlsConnection, attempt=self._attempt), req, context=_tls())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but only to http and https: urllib's own handler also follows them to ftp."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        # urllib would read the whole body of the redirect, however long it is.
        fp.close()
        _require_web(newurl, f"{req.full_url}: leads to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    url: str, *, most_bytes: int, deadline_s: float = DEADLINE_S, wait: Callable[[float], None] = time.sleep
) -> bytes:
    """Download the content of a URL. After network errors and server errors (5xx) it tries again, three times in all.

    Args:
        url: An http or https URL; redirects to other schemes are errors.
        most_bytes: A longer body is refused; if its length is announced, before it is read.
        deadline_s: The greatest total time in seconds, whatever the server does.
        wait: Sleeps between tries.

    Returns:
        The body of the response.

    Raises:
        ImageError: The URL is invalid, the server refuses it or keeps failing, the body is too long or incomplete, or
            time is up. The message names the URL.
    """
    _require_web(url, url)
    ends = time.monotonic() + deadline_s
    for number in range(1, _TRIES + 1):
        try:
            return _in_time(partial(_body, url, most_bytes), ends, f"{url}: not read within {deadline_s:g} s")
        except _TemporaryFault as fault:
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
    # In a separate thread: if a server sends a byte now and then, the timeout of a socket never expires, and the lookup
    # of a host name has no timeout at all.
    attempt, left = _Attempt(), max(0.0, ends - time.monotonic())
    thread = threading.Thread(target=attempt.run, args=(partial(work, attempt, left),), daemon=True)
    try:
        if left:
            thread.start()
            thread.join(left)
        # Checked before the abort: the content of an aborted connection may look complete.
        finished = bool(left) and not thread.is_alive()
    finally:
        attempt.abort()
    if finished and attempt.error is not None:
        raise attempt.error
    if not finished or attempt.content is None:
        raise ImageError(too_late, hint="try again later, or download it yourself")
    return attempt.content


def _body(url: str, most_bytes: int, attempt: _Attempt, left: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "featcache"})
    try:
        with _make_opener(attempt).open(request, timeout=min(left, _SILENCE_S)) as response:
            return _whole(response, url, most_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
        raise _TemporaryFault(message) if error.code >= 500 else ImageError(f"{url}: {message}") from error
    except InvalidURL as error:
        raise ImageError(f"{url}: not a URL: {one_line(error)}", hint=_EXPECTED) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        text = one_line(reason) if isinstance(reason, Exception) else reason
        raise _TemporaryFault(f"cannot be read: {text}") from error
    except ValueError as error:
        raise ImageError(f"{url}: not a URL: {one_line(error)}", hint=_EXPECTED) from error


def _make_opener(attempt: _Attempt) -> urllib.request.OpenerDirector:
    # Not `build_opener`, which would add ftp, file and data.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Opener(attempt),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _whole(response: HTTPResponse, url: str, most_bytes: int) -> bytes:
    announced = response.length
    if announced is not None and announced > most_bytes:
        raise ImageError(f"{url}: {announced:,} bytes, at most {most_bytes:,} are read")
    chunks: list[bytes] = []
    total = 0
    while chunk := response.read(_CHUNK_BYTES):
        chunks.append(chunk)
        total += len(chunk)
        if total > most_bytes:
            raise ImageError(f"{url}: more than {most_bytes:,} bytes, which is the most that is read")
    if announced is not None and total < announced:
        raise _TemporaryFault(f"cut short: {total:,} of {announced:,} bytes came")
    if announced is None and not total:
        # This also happens if the connection breaks within the headers.
        raise _TemporaryFault("cut short: nothing came")
    return b"".join(chunks)


@cache
def _tls() -> ssl.SSLContext:
    # Cached: reading the certificates of the system takes longer than downloading a small image.
    return ssl.create_default_context()
