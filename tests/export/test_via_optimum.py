"""Architectures that are not built here, through Optimum: real exports of tiny random models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.via_optimum import export_with_optimum
from edgespec.models.optimum_folder import is_optimum_folder
from edgespec.models.tokenizer import Tokenizer
from edgespec.runtimes.onnx.optimum import OptimumRuntime

TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"},
    "added_tokens": [],
}
# Architecture → its configuration; weights large enough that a wrong position moves a logit by units.
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 300, "initializer_range": 0.3} | GPT2_SIZES,
    "stablelm": SIZES | {"num_key_value_heads": 2, "rope_theta": 1e5},
}


def real_model(folder: Path, architecture: str) -> tuple[Path, list[int], FloatArray]:
    """A folder as transformers saves it, tokens, and the logits that it gives after them."""
    pytest.importorskip("optimum.exporters.onnx")
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, **MODELS[architecture])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokens = np.random.default_rng(0).integers(0, 300, 40).tolist()
    with torch.inference_mode():
        return folder, tokens, model(torch.tensor([tokens])).logits[0].numpy()


def assert_logits(folder: Path, tokens: list[int], expected: FloatArray) -> None:
    """In one pass, and in several of which each has rejected rows."""
    runtime = OptimumRuntime(folder)
    assert expected.std() > 1
    np.testing.assert_allclose(runtime.forward(tokens), expected, rtol=0, atol=1e-3)
    for size in (17, 1, 6, 3):
        start = runtime.length
        found = runtime.forward([*tokens[start : start + size], 7, 8])[:size]
        np.testing.assert_allclose(found, expected[start : start + size], rtol=0, atol=1e-3)
        runtime.keep(range(size))
    runtime.close()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MODELS)
def test_logits_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    source, tokens, expected = real_model(tmp_path / "source", architecture)
    steps = []
    out = export_with_optimum(source, tmp_path / "new" / "out", lambda *step: steps.append(step))
    assert steps == [("exporting with Optimum", 0, 1), ("exporting with Optimum", 1, 1)]
    assert is_optimum_folder(out)
    assert_logits(out, tokens, expected)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert Tokenizer.from_file(out).vocab_size == 3
    assert list(out.parent.iterdir()) == [out]
    again = export_with_optimum(source, tmp_path / "again")  # a model has been loaded by now
    for path in out.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_rotary_positions_as_transformers_5_writes_them(tmp_path: Path) -> None:
    """Earlier ones would silently take their defaults."""
    source, tokens, expected = real_model(tmp_path / "source", "stablelm")
    config = json.loads((source / "config.json").read_text())
    parameters = {
        "rope_type": "default",
        "rope_theta": config.pop("rope_theta", 1e5),
        "partial_rotary_factor": config.pop("partial_rotary_factor", 0.25),
    }
    config = {key: value for key, value in config.items() if not key.startswith("rope_")}
    (source / "config.json").write_text(json.dumps(config | {"rope_parameters": parameters}))
    assert_logits(export_with_optimum(source, tmp_path / "out"), tokens, expected)


def pretend(folder: Path, **config: Any) -> Path:
    """A folder that has the right files, with nothing in them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "starcoder2"} | SIZES, "export starcoder2"),  # transformers has it
        ({"model_type": "vit"}, "export vit"),
        ({"model_type": "none"}, "model type `none`"),
        (MODELS["gpt2"] | {"model_type": "gpt2"}, "header"),  # no weights
        ({"model_type": "stablelm", "rope_parameters": 7}, "rope_parameters"),
    ],
)
def test_what_optimum_cannot_export_is_an_error_of_one_line(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    pytest.importorskip("optimum.exporters.onnx")
    source = pretend(tmp_path / "source", **config)
    with pytest.raises(UserError, match=f"Optimum cannot export .*{reason}") as caught:
        export_with_optimum(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.slow
def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("optimum.exporters.onnx")
    source = pretend(
        tmp_path / "source",
        model_type="own",
        auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"},
    )
    (source / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(UserError, match="contains custom code"):
        export_with_optimum(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


def test_without_the_extra_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    source = pretend(tmp_path / "source")
    with pytest.raises(UserError, match=r"pip install 'edgespec\[export\]'"):
        export_with_optimum(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        export_with_optimum(pretend(tmp_path / "source"), out)
    assert (out / "mine").read_text() == "mine"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", None])
def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path, missing: str | None) -> None:
    source = tmp_path / "source"
    if missing:
        (pretend(source) / missing).unlink()
        (source / "pytorch_model.bin").write_bytes(b"a pickle is not loaded")
    with pytest.raises(UserError, match="is no model folder"):
        export_with_optimum(source, tmp_path / "out")


def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **_: Any) -> None:
        (Path(command[-1]) / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("edgespec.export.via_optimum._installed", lambda: True)
    monkeypatch.setattr(subprocess, "run", interrupted)
    source = pretend(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        export_with_optimum(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]
