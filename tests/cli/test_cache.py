"""``edgespec cache``: the files themselves are tested in tests/drafting/stores/test_ngram_store.py."""

from __future__ import annotations

from pathlib import Path

from edgespec.drafting.stores import ngram_store as store
from edgespec.units import format_size
from tests.cli.conftest import Run, error_of
from tests.drafting.stores.test_ngram_store import keep


def test_nothing_is_kept_yet(home: Path, run: Run) -> None:
    [line] = run("cache", "show").stdout.splitlines()
    assert line == f"The n-gram cache is on. Folder: {home / 'ngrams'}"
    assert run("cache", "clear").stdout == "Deleted 0 caches.\n"
    assert not home.exists(), "looking makes nothing"


def test_show(home: Path, run: Run) -> None:
    one = keep("one")
    keep("a model with a long name")
    (store.directory() / "other.ngrams").write_bytes(b"no cache")
    header, *rows, folder = run("cache", "show").stdout.splitlines()
    assert header.split() == ["MODEL", "ENTRIES", "SIZE", "LAST", "USED"]
    cells = {row[: header.index("ENTRIES")].strip(): row.split() for row in rows}
    assert set(cells) == {"one", "a model with a long name", "not readable: other.ngrams"}
    assert cells["one"][1:4] == ["1", *format_size(one.stat().st_size).split()]
    assert len({len(row) for row in (header, *rows)}) == 1
    assert folder.endswith(str(store.directory()))


def test_clear_one_model(home: Path, run: Run) -> None:
    one, two = keep("one"), keep("two")
    assert run("cache", "clear", "one").stdout == "Deleted 1 cache.\n"
    assert (one.exists(), two.exists()) == (False, True)
    assert "there is no cache of 'one'" in error_of(run("cache", "clear", "one"))


def test_clear_all(home: Path, run: Run) -> None:
    files = [keep("one"), keep("two"), store.directory() / "other.ngrams"]
    files[-1].write_bytes(b"no cache")
    assert run("cache", "clear").stdout == "Deleted 3 caches.\n"
    assert not any(file.exists() for file in files)


def test_off_and_on(home: Path, run: Run) -> None:
    kept = keep("one")
    assert run("cache", "off").exit_code == 0
    assert not store.enabled()
    assert "cache is off" in run("cache", "show").stdout
    assert kept.exists()
    assert run("cache", "on").exit_code == 0
    assert store.enabled()
    assert "switched off" not in run("cache", "show").stdout


def test_a_setting_that_cannot_be_kept(home: Path, run: Run) -> None:
    home.mkdir()
    (home / "config").touch()
    assert "cannot change" in error_of(run("cache", "off"))
    assert store.enabled()


def test_a_damaged_cache_is_told_once_and_replaced(with_model: Path, run: Run) -> None:
    ask = ("generate", "-p", "Count to ten.", "--max-tokens", 8)
    run(*ask)
    [file] = store.directory().glob("*.ngrams")
    whole = file.read_bytes()
    file.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert run(*ask).stderr.count("is not used and will be replaced: its checksum is wrong]") == 1
    assert "is not used" not in run(*ask).stderr
