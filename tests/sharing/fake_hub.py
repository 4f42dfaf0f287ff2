"""A small Hugging Face Hub on localhost: what huggingface_hub calls to create, commit, list and download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_aTokenThatMustNeverBePrinted"
_LARGE = (".safetensors", ".h5")
_INFO = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?")
_PREUPLOAD = re.compile(r"/api/(?:models|datasets)/[^/]+/[^/]+/preupload/main")
_COMMIT = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)/commit/main")
_BATCH = re.compile(r"/(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Stored:
    """A repository: its commits, the newest last, each with its files."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def add(self, files: dict[str, bytes]) -> str:
        """A new commit."""
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision."""
        if revision in (None, "main"):
            return self.commits[-1]
        return next((one for one in self.commits if one[0] == revision), None)


class FakeHub:
    """Repositories by (type, id). `requests`: what was asked. `fail_with`: a status for every request."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Stored] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_with: int | None = None
        self.url = ""

    def create(self, kind: str, id: str, *, private: bool = False) -> Stored:
        """A new repository as the Hub makes it."""
        self.repositories[kind, id] = stored = Stored(private=private)
        stored.add({".gitattributes": b"*.h5 filter=lfs\n"})
        return stored

    def files(self, kind: str, id: str) -> dict[str, bytes]:
        """The files of the newest commit, which a test may change."""
        return self.repositories[kind, id].commits[-1][1]


@contextmanager
def running() -> Iterator[FakeHub]:
    """A Hub that answers while the block runs."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Information about a repository, and files."""
        path, _ = self._begin()
        if path is None:
            return
        if found := _INFO.fullmatch(path):
            self._send_info(found)
        elif found := _RESOLVE.fullmatch(path):
            self._send_file(found)
        else:
            self._refuse(404, "EntryNotFound")

    def do_HEAD(self) -> None:
        """The same without the content."""
        self.do_GET()

    def do_PUT(self) -> None:
        """The content of a large file."""
        path, body = self._begin()
        if path is not None:
            self.hub.objects[path.rpartition("/")[2]] = body
            self._send(200, b"")

    def do_POST(self) -> None:
        """Everything that changes something."""
        path, body = self._begin()
        if path is None:
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Unauthorized")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif _PREUPLOAD.fullmatch(path):
            files = json.loads(body)["files"]
            modes = ["lfs" if one["path"].endswith(_LARGE) else "regular" for one in files]
            self._send_json(
                {
                    "files": [
                        {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}
                        for one, mode in zip(files, modes, strict=True)
                    ]
                }
            )
        elif _BATCH.fullmatch(path):
            self._send_batch(json.loads(body)["objects"])
        elif found := _COMMIT.fullmatch(path):
            self._commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "EntryNotFound")

    def _begin(self) -> tuple[str | None, bytes]:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.fail_with is not None:
            self._refuse(self.hub.fail_with, "")
            return None, body
        return path, body

    def _find(self, kind: str, id: str) -> Stored | None:
        stored = self.hub.repositories.get((kind, id))
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if stored is None or (stored.private and not known):
            # Without a login the Hub hides private repositories.
            self._refuse(404 if known else 401, "RepoNotFound")
            return None
        return stored

    def _create(self, wanted: dict[str, Any]) -> None:
        kind = f"{wanted.get('type') or 'model'}s"
        id = f"{wanted['organization']}/{wanted['name']}"
        is_new = (kind, id) not in self.hub.repositories
        if is_new:
            self.hub.create(kind, id, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        prefix = "" if kind == "models" else f"{kind}/"
        self._send_json({"url": f"{self.hub.url}/{prefix}{id}", "name": id}, status=200 if is_new else 409)

    def _send_batch(self, objects: list[dict[str, Any]]) -> None:
        upload = [
            one | {"actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}", "header": {}}}}
            for one in objects
        ]
        self._send_json({"transfer": "basic", "objects": upload})

    def _commit(self, kind: str, id: str, lines: list[dict[str, Any]]) -> None:
        stored = self._find(kind, id)
        if stored is None:
            return
        sha, before = stored.commits[-1]
        files = dict(before)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", sha) != sha:
                self._refuse(412, "")
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        new = stored.add(files)
        self._send_json({"commitUrl": f"{self.hub.url}/{id}/commit/{new}", "commitOid": new})

    def _send_info(self, found: re.Match[str]) -> None:
        stored = self._find(found[1], found[2])
        if stored is None:
            return
        commit = stored.at(found[3])
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in commit[1].items()]
        info = {"_id": "1", "id": found[2], "sha": commit[0], "private": stored.private, "siblings": siblings}
        self._send_json(info | {"tags": [], "downloads": 0, "likes": 0, "author": found[2].split("/")[0]})

    def _send_file(self, found: re.Match[str]) -> None:
        stored = self._find("datasets" if found[1] else "models", found[2])
        if stored is None:
            return
        commit = stored.at(found[3])
        if commit is None or found[4] not in commit[1]:
            self._refuse(404, "EntryNotFound")
            return
        content = commit[1][found[4]]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": commit[0]})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', {"X-Error-Code": code} if code else {})

    def _send_json(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
