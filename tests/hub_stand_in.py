"""A stand-in for the HTTP API of the Hugging Face Hub on loopback: repositories, commits, large files, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

# Who a token belongs to, and whether it may write.
TOKENS = {"hf_mine": ("me", True), "hf_reader": ("me", False), "hf_other": ("other", True)}
REPO = r"/(?P<id>[\w.-]+/[\w.-]+)"
KINDS = r"/api/(?P<kind>model|dataset)s"


@dataclass
class Repo:
    """A repository: its files at every commit, oldest first."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        if revision == "main":
            return next(reversed(self.commits.values()))
        return self.commits[revision]

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name in sorted(files):
            digest.update(name.encode() + b"\0" + files[name])
        self.commits[digest.hexdigest()] = files
        return digest.hexdigest()


class Hub(ThreadingHTTPServer):
    """The server. `uploaded` is every byte that was sent to it; `breaks` is a path at which it hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploaded: list[bytes] = []
        self.requests: list[str] = []
        self.breaks = ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error; anything else is one of this file."""
        if not isinstance(sys.exception(), OSError | ValueError):
            super().handle_error(request, client_address)

    def add(self, name: str, files: dict[str, bytes], *, kind: str = "model", private: bool = False) -> str:
        """Make a repository with one commit, or add one to it; return the commit."""
        return self.repos.setdefault((kind, name), Repo(private)).commit(files)

    def folder(self, name: str, folder: Path) -> str:
        """Make a repository of the files in a folder."""
        return self.add(name, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})

    def model(self, name: str) -> Repo:
        return self.repos["model", name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        if self.server.breaks and re.search(self.server.breaks, path):
            self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        self.body = self._read()
        if self.body:
            self.server.uploaded.append(self.body)
        scheme, _, self.token = (self.headers.get("Authorization") or "").partition(" ")
        if self.token and self.token not in TOKENS:
            return self._send(401, {}, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, **found.groupdict())
        return self._send(404, {"error": f"no route {path}"})

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, status: int, content: Any = None, *, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _may(self, name: str, *, write: bool) -> bool:
        user, writes = TOKENS.get(self.token, ("", False))
        return user == name.split("/")[0] and (writes or not write)

    def _repo(self, kind: str, id: str, *, write: bool = False) -> Repo | None:
        """The repository, or None after an error was sent."""
        repo = self.server.repos.get((kind, id))
        if repo is None or (repo.private and not self._may(id, write=False)):
            self._send(404 if self.token else 401, {}, headers={"X-Error-Code": "RepoNotFound"})
            return None
        if write and not self._may(id, write=True):
            self._send(403, {"error": "no rights"}, headers={"X-Error-Message": "no rights"})
            return None
        return repo

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or TOKENS[self.token][0]
        name = f"{owner}/{asked['name']}"
        if not self._may(name, write=True):
            return self._send(403, {"error": "no rights"}, headers={"X-Error-Message": "no rights"})
        if (asked.get("type", "model"), name) in self.server.repos:
            return self._send(409, {"error": "You already created this repo"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.add(name, {".gitattributes": b""}, kind=asked.get("type", "model"), private=private)
        return self._send(200, {"url": f"{self.server.url}/{name}", "name": name})

    def delete(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if self._repo("model", name, write=True):
            del self.server.repos["model", name]
            self._send(200, {})

    def info(self, kind: str, id: str, revision: str | None) -> None:
        revision = revision or "main"
        if (repo := self._repo(kind, id)) is None:
            return None
        if revision != "main" and revision not in repo.commits:
            return self._send(404, {}, headers={"X-Error-Code": "RevisionNotFound"})
        files = repo.files(revision)
        card = files.get("README.md", b"").decode()
        matter = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}
        sha = repo.head if revision == "main" else revision
        siblings = [{"rfilename": name} for name in files]
        return self._send(
            200, {"id": id, "sha": sha, "private": repo.private, "siblings": siblings, "cardData": matter}
        )

    def tree(self, kind: str, id: str, revision: str, place: str | None = None) -> None:
        if (repo := self._repo(kind, id)) is None:
            return None
        if revision != "main" and revision not in repo.commits:
            return self._send(404, {}, headers={"X-Error-Code": "RevisionNotFound"})
        prefix = f"{place.strip('/')}/" if place else ""
        deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for name, data in repo.files(revision).items():
            inner = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            folder, slash, _ = inner.partition("/")
            if slash and not deep:
                entries[folder] = {"type": "directory", "path": prefix + folder, "oid": "0" * 40, "size": 0}
            else:
                entries[inner] = entry(name, data)
        if prefix and not entries:
            return self._send(404, {}, headers={"X-Error-Code": "EntryNotFound"})
        return self._send(200, list(entries.values()))

    def paths(self, kind: str, id: str, revision: str) -> None:
        if (repo := self._repo(kind, id)) is not None:
            asked = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
            files = repo.files(revision)
            self._send(200, [entry(name, files[name]) for name in asked if name in files])

    def preupload(self, kind: str, id: str, revision: str) -> None:
        if self._repo(kind, id, write=True) is not None:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
                for file in json.loads(self.body)["files"]
            ]
            self._send(200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})

    def batch(self, id: str, **_: str) -> None:
        answers = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": answers})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self._send(200, b"")

    def commit(self, kind: str, id: str, revision: str) -> None:
        if (repo := self._repo(kind, id, write=True)) is None:
            return None
        files = dict(repo.files())
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repo.head):
                return self._send(412, {"error": "the branch has moved"})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.server.uploaded.append(files[value["path"]])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files)
        return self._send(200, {"commitUrl": f"{self.server.url}/{id}/commit/{oid}", "commitOid": oid})

    def resolve(self, id: str, revision: str, file: str, prefix: str | None = None) -> None:
        if (repo := self._repo("dataset" if prefix else "model", id)) is None:
            return None
        if (data := repo.files(revision).get(file)) is None:
            return self._send(404, b"", headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": repo.head if revision == "main" else revision, "ETag": f'"{oid_of(file, data)}"'}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(found[1]), int(found[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            return self._send(206, data[start:stop], headers=headers)
        return self._send(200, data, headers=headers)


def is_large(name: str) -> bool:
    """Whether the Hub keeps a file apart from the git repository."""
    return name.endswith(".safetensors")


def oid_of(name: str, data: bytes) -> str:
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, Any]:
    found = {"type": "file", "path": name, "size": len(data), "oid": oid_of("", data)}
    return found | ({"lfs": {"oid": oid_of(name, data), "size": len(data), "pointerSize": 1}} if is_large(name) else {})


ROUTES = [
    ("POST /api/repos/create", Handler.create),
    ("DELETE /api/repos/delete", Handler.delete),
    ("POST /api/validate-yaml", lambda handler: handler._send(200, {"errors": [], "warnings": []})),
    (f"GET {KINDS}{REPO}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    (f"GET {KINDS}{REPO}/tree/(?P<revision>[^/]+)(?P<place>/.*)?", Handler.tree),
    (f"POST {KINDS}{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths),
    (f"POST {KINDS}{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (f"POST {KINDS}{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    (f"POST (?P<prefix>/datasets)?{REPO}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT /lfs/(?P<oid>[0-9a-f]+)", Handler.put),
    (f"(?:GET|HEAD) (?P<prefix>/datasets)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", Handler.resolve),
]  # fmt: skip


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Serve an empty Hub."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield hub
        hub.shutdown()


def environment(hub: Hub, cache: Path, token: str = "") -> dict[str, str]:
    """The variables with which another process uses the stand-in, from an empty cache."""
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return own | ({"HF_TOKEN": token} if token else {})


def use(patch: pytest.MonkeyPatch, hub: Hub, cache: Path, token: str = "hf_mine") -> None:
    """Let the client in this process, which was told at its import to stay offline, use the stand-in."""
    values = {
        "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"), "HF_STORED_TOKENS_PATH": str(cache / "tokens"),
    }  # fmt: skip
    for name, value in values.items():
        patch.setattr(f"huggingface_hub.constants.{name}", value)
    patch.setenv("HF_HUB_OFFLINE", "0")
    patch.setenv("HF_TOKEN", token)
    if not token:
        patch.delenv("HF_TOKEN")
