"""The catalogue says what it must about every model, and its sources can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgespec.export.architectures import ARCHITECTURES
from edgespec.models.catalogue import (
    DEFAULT_MODEL,
    CatalogueEntry,
    HubFile,
    WheelMember,
    load_catalogue,
    parse_source,
)
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.ik_llama_cpp import ARCHITECTURES as IK_ARCHITECTURES
from edgespec.runtimes.ik_llama_cpp import why_not

ENTRIES = load_catalogue()


def test_default_is_the_first_model() -> None:
    assert next(iter(ENTRIES)) == DEFAULT_MODEL


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_entry_is_whole(entry: CatalogueEntry) -> None:
    assert entry.name == entry.name.lower()
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*\.gguf", entry.file)  # a name, never a path
    assert entry.sources
    assert entry.license
    assert entry.description
    assert set(entry.runtimes) <= {"onnx", "llama-cpp", "ik-llama-cpp"}
    assert ("onnx" in entry.runtimes) == (entry.architecture in ARCHITECTURES)
    assert "ik-llama-cpp" not in entry.runtimes or entry.architecture in IK_ARCHITECTURES
    assert 3 < 8 * entry.size / entry.parameters < 10.3  # bits a parameter: 4 to 8, and scales


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_sources_can_be_read_and_checked(entry: CatalogueEntry) -> None:
    for source in map(parse_source, entry.sources):
        assert not isinstance(source, Path)  # no folder is on every machine
        if not isinstance(source, HubFile):  # nothing but the catalogue vouches for a wheel
            assert re.fullmatch("[0-9a-f]{64}", entry.sha256 or "")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_the_hub_comes_first(entry: CatalogueEntry) -> None:
    on_hub = [isinstance(source, HubFile) for source in map(parse_source, entry.sources)]
    assert on_hub == sorted(on_hub, reverse=True)


def test_the_default_model_lists_what_runs_its_file(smollm2: Path) -> None:
    on_ik = why_not(GGUFFile(smollm2)) is None
    assert ("ik-llama-cpp" in ENTRIES[DEFAULT_MODEL].runtimes) == on_ik


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_drafts_share_the_tokenizer_and_are_smaller(entry: CatalogueEntry) -> None:
    for draft in (ENTRIES[name] for name in entry.drafts):
        assert draft.tokenizer_family == entry.tokenizer_family
        assert draft.parameters < entry.parameters


def test_parts_count_together() -> None:
    source = "pypi:name-part{1..11}==2.0/name_part{1..11}/data/x.part{00..10}"
    parts = parse_source(source)
    assert isinstance(parts, tuple)
    assert len(parts) == 11
    assert parts[0] == WheelMember("name-part1==2.0", "name_part1/data/x.part00")
    assert parts[10] == WheelMember("name-part11==2.0", "name_part11/data/x.part10")


def test_known_sources() -> None:
    assert parse_source("hf:o/r/sub/f.gguf@main") == HubFile("o/r", "sub/f.gguf", "main")
    assert parse_source("hf:o/r/f.gguf") == HubFile("o/r", "f.gguf", None)
    assert parse_source("pypi:a==1/b/c.bin") == (WheelMember("a==1", "b/c.bin"),)
    assert parse_source("C:/models/m.gguf") == Path("C:/models/m.gguf")


@pytest.mark.parametrize(
    "source",
    ["hf:owner/repo", "hf:owner/repo/", "pypi:a/b", "pypi:a==1", "pypi:a{1..3}==1/b{1..2}"],
)
def test_a_malformed_source_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=re.escape(source.partition(":")[2])):
        parse_source(source)
