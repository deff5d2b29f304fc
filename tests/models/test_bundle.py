"""A bundle is believed only when every byte of it is what was exported."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgespec.errors import UserError
from edgespec.export.bundle import add_model, new_folder, write_manifest
from edgespec.models import bundle as bundles
from edgespec.models.bundle import MANIFEST, read_bundle

SCHEMA = json.loads((Path(bundles.__file__).parent / "bundle.schema.json").read_text("utf-8"))
MODEL = {
    "name": "small",
    "architecture": "llama",
    "format": "onnx",
    "path": "model",
    "weight_bytes": 7,
    "token_ids": None,
    "quality": None,
    "provenance": {"source": {"a.gguf": "0" * 64}, "edgespec": "0.1.0", "options": {}},
}


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    """A whole bundle, of files that nobody reads."""
    out = tmp_path / "bundle"
    with new_folder(out) as partial:
        for name in ("model/model.onnx", "model/edgespec.json", "tokenizer/tokenizer.json"):
            path = partial / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"this is {name}", encoding="utf-8")
        write_manifest(partial, name="small", target=MODEL, drafts=[], sampling={"top_p": 0.9})
    return out


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_whole_bundle_is_read(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.target is not None
    assert (bundle.target.format, bundle.target.path) == ("onnx", folder / "model")
    assert bundle.tokenizer == folder / "tokenizer"
    assert bundle.sampling == {"top_p": 0.9}
    assert set(bundle.files) == {
        "model/model.onnx", "model/edgespec.json", "tokenizer/tokenizer.json",
    }  # fmt: skip


def test_the_schema_takes_what_is_written_and_only_that(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest, SCHEMA)
    for wrong in (
        {"version": 2},
        {"drafts": None},
        {"more": 1},
        {"tokenizer": "../tokenizer"},
        {"target": {**MODEL, "format": "pickle"}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}},
        {"files": {"a": {"bytes": 1, "sha256": "0"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**manifest, **wrong}, SCHEMA)


def test_the_same_files_give_the_same_manifest(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    write_manifest(folder, name="small", target=MODEL, drafts=[], sampling={"top_p": 0.9})
    assert (folder / MANIFEST).read_bytes() == before


def test_a_changed_byte_is_refused_by_name(folder: Path) -> None:
    read_bundle(folder)
    path = folder / "model" / "edgespec.json"
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model/edgespec\.json in the bundle .* is not what was"):
        read_bundle(folder)


def test_a_missing_file_is_refused_by_name(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"lacks tokenizer/tokenizer\.json"):
        read_bundle(folder)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "no JSON": lambda folder: (folder / MANIFEST).write_text("{"),
    "nested": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "not UTF-8": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xff"),
    "no files": lambda folder: change(folder, lambda m: m.pop("files")),
    "files of no size": lambda folder: change(folder, lambda m: m.update(files={"a": {}})),
    "a format": lambda folder: change(folder, lambda m: m["target"].update(format="pickle")),
    "an unlisted model": lambda folder: change(folder, lambda m: m["target"].update(path="other")),
    "a list for sampling": lambda folder: change(folder, lambda m: m.update(sampling=["top_p"])),
    "text for top_p": lambda folder: change(folder, lambda m: m.update(sampling={"top_p": "x"})),
    "nested entries": lambda folder: (folder / MANIFEST).write_text(
        '{"version": 1, "more": ' + "[" * 100_000
    ),
    "too many files": lambda folder: change(
        folder,
        lambda m: m.update(files={str(i): {"bytes": 1, "sha256": "0" * 64} for i in range(10_001)}),
    ),
    "a negative size": lambda folder: change(
        folder, lambda m: m.update(files={"a": {"bytes": -1, "sha256": "0" * 64}})
    ),
    "a number for drafts": lambda folder: change(folder, lambda m: m.update(drafts=3)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_manifest_is_refused(folder: Path, what: str) -> None:
    BROKEN[what](folder)
    with pytest.raises(UserError, match=r"bundle\.json is not usable"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "path",
    ["../model", "/model", "model/../../x", "C:/model", "model\\..\\x", "", "a//b", "./a", "a\n"],
)
def test_paths_stay_inside(folder: Path, path: str) -> None:
    change(folder, lambda m: m["target"].update(path=path))
    with pytest.raises(UserError, match="malformed"):
        read_bundle(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="making links takes rights there")
def test_a_link_out_of_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    inside = folder / "model" / "model.onnx"
    shutil.move(inside, tmp_path / "outside")
    os.symlink(tmp_path / "outside", inside)
    with pytest.raises(UserError, match="lies outside"):
        read_bundle(folder)


def test_other_versions_are_refused(folder: Path) -> None:
    change(folder, lambda m: m.update(version=2))
    with pytest.raises(UserError, match="reads version 1"):
        read_bundle(folder)


def test_a_draft_moves_into_another_bundle(folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.target is not None
    with new_folder(tmp_path / "both") as partial:
        entry = add_model(partial, bundle, bundle.target)
        shutil.copytree(folder / "tokenizer", partial / "tokenizer")
        with pytest.raises(UserError, match="two drafts are named small"):
            add_model(partial, bundle, bundle.target)
        write_manifest(partial, name="both", target=None, drafts=[entry], sampling={})
    [draft] = read_bundle(tmp_path / "both").drafts
    assert draft.path == tmp_path / "both" / "drafts" / "small"
    assert (draft.path / "model.onnx").read_text(encoding="utf-8") == "this is model/model.onnx"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "half").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="out exists"), new_folder(tmp_path / "out"):
        pytest.fail("it began")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
