"""``edgespec export`` from the command line: bundles that are whole, and errors of one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgespec import kernels
from edgespec.export.pipeline import export
from edgespec.export.recipe import Recipe
from edgespec.models.bundle import read_bundle
from edgespec.models.gguf import GGUFFile
from edgespec.models.onnx_folder import read_manifest
from edgespec.models.tokenizer import Tokenizer
from tests.cli.conftest import Run, error_of, spawn
from tests.hf_folder import safetensors_folder
from tests.models.test_bundle import SCHEMA

pytestmark = pytest.mark.usefixtures("home")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return found


def test_a_target_becomes_a_bundle(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    result = run("export", tiny_model, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    manifest = manifest_of(tmp_path / "out")
    assert manifest["target"]["format"] == "onnx"
    packed = "packed" in read_manifest(tmp_path / "out" / "model")
    assert packed == (kernels.why_not() is None)
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["drafts"] == []
    quality = manifest["target"]["quality"]
    assert quality["perplexity"] > 1
    assert quality["bytes_per_token"] == manifest["target"]["weight_bytes"]
    bundle = read_bundle(tmp_path / "out")
    assert bundle.target is not None
    assert set(bundle.files) == set(files_of(tmp_path / "out")) - {"bundle.json"}


def test_the_same_export_gives_the_same_bytes(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for parent in ("first", "second"):
        out = tmp_path / parent / "out"
        assert run("export", tiny_model, out, "--weights", "int8", "--allow-loss").exit_code == 0
        found.append(files_of(out))
    assert found[0] == found[1]
    assert manifest_of(out)["target"]["quality"]["kl_divergence"] > 0


def test_a_draft_is_packed_with_its_target(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the sea is salty and the rivers are not\n" * 50, encoding="utf-8")
    trim = ("--trim-vocab", 280, "--corpus", corpus)  # rows are packed by 16
    result = run("export", tiny_model, tmp_path / "draft", *trim)
    assert result.exit_code == 0, result.output
    assert "coverage" in result.stdout
    draft = manifest_of(tmp_path / "draft")
    jsonschema.validate(draft, SCHEMA)
    assert draft["target"] is None
    [model] = draft["drafts"]
    assert len(model["token_ids"]) == 280
    assert model["quality"]["bytes_per_token"] < model["quality"]["bytes_per_token_before"]
    result = run("export", tiny_model, tmp_path / "both", "--draft", tmp_path / "draft")
    assert result.exit_code == 0, result.output
    both = read_bundle(tmp_path / "both")
    assert both.target is not None
    assert [d.name for d in both.drafts] == ["draft"]
    assert files_of(both.drafts[0].path) == files_of(tmp_path / "draft" / "model")


def test_a_draft_keeps_what_the_target_says(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the sea\n\nand the rivers\n" * 5, encoding="utf-8")
    sampled = ("--sampled-from", tiny_model, "--prompts", prompts)
    result = run("export", tiny_model, tmp_path / "draft", "--trim-vocab", 290, *sampled)
    assert result.exit_code == 0, result.output
    [model] = manifest_of(tmp_path / "draft")["drafts"]
    assert model["quality"]["acceptance_before"] == 1  # it drafts for itself
    assert model["quality"]["coverage"] == 1
    corpus = text(tmp_path)
    result = run(
        "export", tiny_model, tmp_path / "both", "--trim-vocab", 290, *sampled, "--corpus", corpus
    )
    assert result.exit_code == 0, result.output
    [both] = manifest_of(tmp_path / "both")["drafts"]
    assert list(both["provenance"]["options"]["corpus"]) == [corpus.name]
    assert both["quality"]["coverage"] == 1  # of the answers, whatever the corpus has
    prompts.write_text("\n\n", encoding="utf-8")
    with_none = run("export", tiny_model, tmp_path / "none", "--trim-vocab", 290, *sampled)
    assert "no prompts" in error_of(with_none)


@pytest.mark.parametrize(
    ("model", "tokens", "least"),
    [
        ("tiny_model", 290, 0.25),
        pytest.param("smollm2", 4096, 0.99, marks=pytest.mark.slow),  # Q4_1: only the head changes
    ],
)
def test_a_draft_in_int4_reads_less(
    run: Run, tmp_path: Path, request: pytest.FixtureRequest, model: str, tokens: int, least: float
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the sea is salty and the rivers are not\n" * 50, encoding="utf-8")
    options = ("--trim-vocab", tokens, "--corpus", corpus, "--weights")
    found = []
    for weights in ("exact", "int4"):
        out = tmp_path / weights
        result = run("export", request.getfixturevalue(model), out, *options, weights)
        assert result.exit_code == 0, result.output
        assert "acceptance" in result.stdout
        [draft] = manifest_of(out)["drafts"]
        assert draft["provenance"]["options"]["weights"] == weights
        found.append((draft["token_ids"], draft["quality"]))
    (ids, exact), (same, small) = found
    assert ids == same
    assert small["bytes_per_token"] < least * exact["bytes_per_token"]
    for name in ("bytes_per_token_before", "acceptance_before"):
        assert small[name] == exact[name]
    assert 0 < small["acceptance"] <= small["acceptance_before"]


def test_layers_are_kept(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    assert run("export", tiny_model, tmp_path / "out", "--keep-layers", "1,").exit_code == 2
    result = run("export", tiny_model, tmp_path / "out", "--keep-layers", "0,1")
    assert result.exit_code == 0, result.output
    [model] = manifest_of(tmp_path / "out")["drafts"]
    assert model["provenance"]["options"]["keep_layers"] == [0, 1]


BAD: dict[str, tuple[Callable[[Path], list[object]], str]] = {
    "no source": (lambda tmp: ["nothing.gguf"], "there is no file"),
    "an empty folder": (lambda tmp: [made(tmp / "empty")], "no config.json"),
    "trimming by nothing": (lambda tmp: ["MODEL", "--trim-vocab", 300], "--corpus FILE"),
    "auto by a corpus": (
        lambda tmp: ["MODEL", "--trim-vocab", "auto", "--corpus", text(tmp)],
        "--sampled-from TARGET",
    ),
    "a corpus for nothing": (lambda tmp: ["MODEL", "--corpus", text(tmp)], "go with --trim-vocab"),
    "prompts for nothing": (lambda tmp: ["MODEL", "--prompts", text(tmp)], "go together"),
    "no number": (lambda tmp: ["MODEL", "--trim-vocab", "many"], "number of tokens"),
    "too many tokens": (
        lambda tmp: ["MODEL", "--trim-vocab", 10**6, "--corpus", text(tmp)],
        "cannot keep 1000000",
    ),
    "too few tokens": (
        lambda tmp: ["MODEL", "--trim-vocab", 3, "--corpus", text(tmp)],
        "cannot keep 3 tokens",
    ),
    "weights by Optimum": (
        lambda tmp: ["MODEL", "--via", "optimum", "--weights", "int8"],
        "does not go with other options",
    ),
    "answers for Optimum": (
        lambda tmp: ["MODEL", "--via", "optimum", "--sampled-from", "X", "--prompts", text(tmp)],
        "does not go with other options",
    ),
    "no such corpus": (
        lambda tmp: ["MODEL", "--trim-vocab", 300, "--corpus", tmp / "none"],
        "cannot read",
    ),
    "no such layer": (lambda tmp: ["MODEL", "--keep-layers", "0,7"], "cannot keep the layers"),
    "no layers": (lambda tmp: ["MODEL", "--keep-layers", "first"], "neither a number"),
    "no bundle": (lambda tmp: ["MODEL", "--draft", made(tmp / "d")], "is no bundle"),
}


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def text(folder: Path) -> Path:
    (folder / "text.txt").write_text("some text " * 100, encoding="utf-8")
    return folder / "text.txt"


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_one_line(run: Run, tiny_model: Path, tmp_path: Path, what: str) -> None:
    arguments, reason = BAD[what]
    source, *options = (tiny_model if a == "MODEL" else a for a in arguments(tmp_path))
    before = {path.name for path in tmp_path.iterdir()} | {"home"}  # which keeps hashes
    assert reason in error_of(run("export", source, tmp_path / "out", *options))
    assert {path.name for path in tmp_path.iterdir()} <= before  # nothing half-written


def test_another_models_tokenizer_is_refused(
    run: Run, tiny_model: Path, smollm2: Path, tmp_path: Path
) -> None:
    folder = safetensors_folder(tiny_model, tmp_path / "folder")
    Tokenizer.from_gguf(GGUFFile(smollm2)).save(folder)
    for format in ("onnx", "gguf"):
        reason = error_of(run("export", folder, tmp_path / "out", "--format", format))
        assert "do not belong together" in reason
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_left_alone(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "exists" in error_of(run("export", tiny_model, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_as_a_folder_appears_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    made, mkdir = [], os.mkdir

    def interrupted(path: str | os.PathLike[str], *arguments: Any) -> None:
        mkdir(path, *arguments)
        if Path(path).name.startswith(".out."):
            made.append(path)
            if len(made) == nth:
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, tmp_path / "out", Recipe())
    assert len(made) == nth
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_leaves_nothing(smollm2: Path, tmp_path: Path) -> None:
    process = spawn("export", smollm2, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*")):  # it has begun
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", ["packed", "onnx", "gguf"])
def test_every_format_gives_the_tokens_of_the_source(
    format_: str, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    if format_ == "packed" and (reason := kernels.why_not()):
        pytest.skip(reason)
    if format_ == "gguf":
        pytest.importorskip("llama_cpp")
    out = tmp_path / "out"
    result = run("export", tiny_model, out, "--format", format_)
    assert result.exit_code == 0, result.output
    assert manifest_of(out)["target"]["provenance"]["options"]["format"] == format_
    asked = ("--raw", "-p", "the sea", "--max-tokens", 12)
    answers = [run("generate", m, *asked) for m in (tiny_model, out)]
    assert [answer.exit_code for answer in answers] == [0, 0]
    assert answers[0].stdout == answers[1].stdout
