"""Environments of peers, with a package that the test makes: no network."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from edgespec.bench.peers import PEERS, Mode, Peer, environments, setup_named, worker_of
from edgespec.bench.records.results import System
from edgespec.errors import UserError
from edgespec.models import store

PEER = Peer("tiny", "a tiny one", "tiny", {"plain": Mode("")}, ("tiny-peer-of-a-test>=1",))


def wheel(folder: Path, version: str) -> None:
    """A package that pip installs without building anything."""
    name = f"tiny_peer_of_a_test-{version}"
    files = {
        "tiny_peer_of_a_test.py": f"VERSION = '{version}'\n",
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tiny-peer-of-a-test\nVersion: {version}\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        record = ""
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
            record += f"{path},sha256={digest.decode()},{len(text)}\n"
            archive.writestr(path, text)
        archive.writestr(f"{name}.dist-info/RECORD", f"{record}{name}.dist-info/RECORD,,\n")


@pytest.fixture
def wheels(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that pip installs from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(PEERS, "tiny", PEER)
    return folder


def said(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


VERSION = "import tiny_peer_of_a_test as t; print(t.VERSION)"


def test_a_peer_is_set_up_in_an_environment_of_its_own(wheels: Path) -> None:
    system = System("tiny plain", "tiny")
    with pytest.raises(
        UserError, match=r"^tiny is not installed; run `.*--setup-peer tiny` first$"
    ):
        worker_of(system)
    wheel(wheels, "1.5")
    told: list[tuple[str, int, int]] = []
    python = setup_named("tiny", lambda *what: told.append(what))
    assert setup_named("tiny") == python
    assert said(python, VERSION) == "1.5\n"
    assert python == environments.python_of(PEER) != Path(sys.executable)
    command, variables = worker_of(system)
    assert command == [str(python), "-m", "workers.tiny"]
    assert (Path(variables["PYTHONPATH"]) / "workers" / "serving.py").is_file()
    assert [done for _, done, _ in told] == [0, 1, 2, 3]
    folder = store.data_dir("peers") / "tiny"
    assert "tiny-peer-of-a-test==1.5" in (folder / environments.INSTALLED).read_text()
    assert not list(folder.parent.glob("*partial*"))
    with pytest.raises(subprocess.CalledProcessError):
        said(Path(sys.executable), VERSION)


def test_it_is_made_once_until_it_requires_something_else(wheels: Path) -> None:
    wheel(wheels, "1.5")
    environments.setup(PEER)
    wheel(wheels, "2.0")
    told: list[str] = []
    python = environments.setup(PEER, lambda what, *_: told.append(what))
    assert not told
    assert said(python, VERSION) == "1.5\n"
    newer = Peer("tiny", "", "tiny", PEER.modes, ("tiny-peer-of-a-test>=2",))
    assert environments.python_of(newer) is None
    assert said(environments.setup(newer), VERSION) == "2.0\n"


def test_what_pip_cannot_install_is_told_in_a_line_and_leaves_nothing(wheels: Path) -> None:
    with pytest.raises(
        UserError, match=r"^pip cannot install tiny: No matching .*[^\n]*$"
    ) as error:
        environments.setup(PEER)
    log = Path(str(error.value).rpartition(" is in ")[2])
    assert "tiny-peer-of-a-test" in log.read_text()
    assert environments.python_of(PEER) is None
    assert not [path for path in log.parent.iterdir() if path.is_dir()]


def test_an_interrupted_setup_is_no_environment(
    wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(wheels, "1.5")

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        environments.setup(PEER, stop)
    assert environments.python_of(PEER) is None
    partial = store.data_dir("peers") / ".tiny.partial"
    assert not partial.exists()
    partial.mkdir()  # as a setup leaves it that was killed
    (partial / "half").write_text("")
    folder = environments.setup(PEER).parents[1]
    assert not (folder / "half").exists()


def test_the_second_of_two_waits(wheels: Path) -> None:
    wheel(wheels, "1.5")
    told: list[str] = []
    began, second = threading.Event(), []

    def first(what: str, *_: int) -> None:
        if not began.is_set():
            began.set()
            while not told:
                time.sleep(0.01)

    def tell(what: str, *_: int) -> None:
        told.append(what)

    thread = threading.Thread(target=lambda: second.append(environments.setup(PEER, first)))
    thread.start()
    began.wait()
    python = environments.setup(PEER, tell)
    thread.join()
    assert told == ["waiting for another process to set up tiny"]
    assert second == [python]


def test_a_peer_that_is_here_or_requires_nothing_needs_no_environment(home: Path) -> None:
    none = Peer("none", "", "none", {}, ())
    here = Peer("here", "", "here", {}, ("pytest>=8", "click"))
    assert environments.python_of(none) == environments.python_of(here) == Path(sys.executable)
    assert environments.setup(none) == Path(sys.executable)
    assert not store.data_dir("peers").exists()
    with pytest.raises(UserError, match="no peer; did you mean transformers"):
        setup_named("transformer")
    newer = Peer("newer", "", "newer", {}, ("pytest>=1000",))
    assert environments.python_of(newer) is None
