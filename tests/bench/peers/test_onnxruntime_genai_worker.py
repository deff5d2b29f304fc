"""ONNX Runtime GenAI's worker, and what is changed of a configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgespec.bench.peers.workers.onnxruntime_genai import _run, describe, overlay, weight_bytes
from tests.bench.peers.asking import ask, needs

PEER = "onnxruntime-genai"


def test_what_it_says_of_the_weights() -> None:
    settings = {"quantization": "k_quant", "block_size": 32, "symmetric": False}
    assert describe(settings) == (
        "dequantized and quantized anew: k_quant, blocks of 32, with zero points"
    )
    assert describe({**settings, "symmetric": True}).endswith("symmetric")


def test_a_draft_model_is_found_from_the_target_s_folder(tmp_path: Path) -> None:
    target, draft = tmp_path / "target", tmp_path / "draft"
    decoder = {"filename": "model.onnx", "session_options": {"log_id": "x"}, "hidden_size": 8}
    for folder in (target, draft):
        folder.mkdir()
        config = {"model": {"vocab_size": 100, "eos_token_id": 2, "decoder": decoder}}
        (folder / "genai_config.json").write_text(json.dumps(config))
    plain = overlay(target, None, 3)
    assert plain["model"] == {
        "eos_token_id": [99],
        "decoder": {"session_options": {"intra_op_num_threads": 3}},
    }
    model = overlay(target, draft, 3)["model"]
    assert Path(model["draft"].pop("filename")) == Path("../draft/model.onnx")
    assert model.pop("draft") == {
        "session_options": {"log_id": "x", "intra_op_num_threads": 3},
        "hidden_size": 8,
    }
    assert model == plain["model"]


@pytest.mark.parametrize("outside", [False, True])
def test_an_embedding_that_is_looked_up_in_is_not_read(tmp_path: Path, outside: bool) -> None:
    arrays = {"embedding": np.ones((64, 8), np.float32), "head": np.ones((8, 32), np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embedding", "ids"], ["rows"]),
            helper.make_node("MatMul", ["rows", "head"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph),
        path,
        save_as_external_data=outside,
        size_threshold=0,
        location="d",
    )
    assert weight_bytes(path) == 8 * 32 * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are converted once."""
    return tmp_path_factory.mktemp("models")


@needs(PEER)
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "ngram", "draft"])
def test_it_answers(mode: str, smollm2: Path, folder: Path) -> None:
    ask(PEER, mode, "dequantized and quantized anew", 1.2, smollm2, folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
def test_a_builder_that_memory_ends_is_told_apart_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ended.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    (tmp_path / "failing.py").write_text("raise ValueError('too odd')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"^ended was ended by signal 9: out of memory\?$"):
        _run("ended")
    with pytest.raises(RuntimeError, match=r"^failing failed: ValueError: too odd$"):
        _run("failing")
