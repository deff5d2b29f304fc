"""Checkpoints become the same models as GGUF files, and what transformers computes from the folder.

The golden values make that known without torch too; ``test_agrees_with_transformers`` vouches for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.source import KEPT_LAYERS, Source
from edgespec.export.sources import open_source
from edgespec.export.sources.safetensors import SafetensorsSource
from edgespec.export.to_onnx import write_onnx
from edgespec.models.gguf import GGUFFile, TensorInfo
from edgespec.models.safetensors import Checkpoint
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.export.test_decoder import assert_goes_on_as_it_should
from tests.hf_folder import safetensors_folder, write_safetensors
from tests.onnx_support import WINDOWS
from tests.tiny import tiny_gguf

TOKENS = np.random.default_rng(1).integers(0, 256, 60).tolist()
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": np.linspace(1, 8, 24).tolist(),
    "long_factor": np.linspace(2, 16, 24).tolist(),
}


def kind(model_type: str, class_name: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [class_name], **changes}


# How each is made: a tiny GGUF file, its variant, and what is changed in config.json.
MADE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama tied": ("llama", {"tied": True}, {}),
    "llama 3": ("llama", {}, {"rope_scaling": LLAMA3}),
    "llama scaled": ("llama", {"rope_scaling": 4.0}, {}),
    "mistral": ("llama", {}, kind("mistral", "MistralForCausalLM", sliding_window=16)),
    "mistral global": ("llama", {}, kind("mistral", "MistralForCausalLM", sliding_window=None)),
    "smollm3": ("llama", {"layers": 5, "tied": True}, kind("smollm3", "SmolLM3ForCausalLM")),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {}, {}),
    "gemma3": ("gemma3", {}, {}),
    "gemma3 scaled": ("gemma3", {"rope_scaling": 4.0, "window": 5}, {}),
    "phi3": ("phi3", {}, {"sliding_window": None}),
    "phi3 window": ("phi3", {}, {"sliding_window": 16}),
    "phi4": ("phi3", {"rope_dims": 48}, {"sliding_window": None, "partial_rotary_factor": 0.75}),
    "phi3 long": (
        "phi3",
        {"rope_dims": 48},
        {
            "sliding_window": None,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 128,
            "rope_scaling": LONGROPE,
        },
    ),
}
WINDOWED = ("mistral", "gemma3", "gemma3 scaled", "phi3 window")

# Transformers' logits: the last row's, every fiftieth.
GOLDEN = {
    "llama": [-3.1335, -1.8654, -2.1264, -1.2187, 1.3161, -0.0852],
    "llama tied": [1.7643, -4.0344, 0.6071, -4.6828, 0.0843, -0.371],
    "llama 3": [4.6247, 3.615, 0.7295, -1.5933, 0.1612, -2.616],
    "llama scaled": [5.1539, 0.479, 7.1601, 0.7848, -6.2592, -0.3845],
    "mistral": [2.5462, -2.7513, 1.5383, 0.4523, 2.4048, -1.1818],
    "mistral global": [-3.1335, -1.8654, -2.1264, -1.2187, 1.3161, -0.0852],
    "smollm3": [-2.1803, -3.5822, -0.3001, -4.1381, 2.5496, -3.088],
    "qwen2": [0.8512, 2.366, 1.008, 1.3843, 0.1899, -1.0821],
    "qwen3": [-3.5262, -0.6556, 2.0789, 1.5489, -2.9716, 1.7257],
    "gemma3": [-0.0121, 3.454, -1.208, 0.6014, 1.9993, -2.8465],
    "gemma3 scaled": [-0.7387, -4.0626, 1.1888, -6.151, 3.1616, -0.1984],
    "phi3": [-2.4455, 0.7901, 2.3006, 2.851, -2.0203, -2.2603],
    "phi3 window": [-5.448, -1.4355, 0.4488, 0.6691, 1.4918, -6.1586],
    "phi4": [-3.0908, -8.1467, -1.2439, -5.6142, -0.6075, -2.5823],
    "phi3 long": [1.577, 0.2545, -0.7095, -0.6007, 2.0392, -5.4805],
}


def checkpoint(folder: Path, name: str = "llama", dtype: str = "F32", shards: int = 1) -> Path:
    architecture, variant, changes = MADE[name]
    if name in WINDOWED and not WINDOWS:
        pytest.skip("this ONNX Runtime has other sliding windows")
    folder.mkdir(parents=True, exist_ok=True)
    made = tiny_gguf(folder / "made.gguf", architecture, **variant)
    safetensors_folder(made, folder, dtype, shards=shards)
    made.unlink()
    configure(folder, **changes)
    return folder


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits_of(source: Source, folder: Path) -> FloatArray:
    folder.mkdir()
    write_onnx(source, folder)
    runtime = OnnxRuntime(folder, context=64, exact=False)
    found = runtime.forward(TOKENS).copy()
    runtime.close()
    return found


@pytest.mark.parametrize("name", MADE)
def test_golden_logits(tmp_path: Path, name: str) -> None:
    source = open_source(checkpoint(tmp_path / "model", name, shards=2))
    found = logits_of(source, tmp_path / "built")
    np.testing.assert_allclose(found[-1, ::50], GOLDEN[name], rtol=0, atol=1e-3)


def assert_agrees_with_transformers(folder: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from edgespec.export.reference import TorchRuntime

    source = open_source(folder)
    expected = TorchRuntime(folder, context=64, threads=1).forward(TOKENS)
    assert expected.std() > 2
    found = TorchRuntime(source, context=64, threads=1).forward(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    found = logits_of(source, folder.with_name("built"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MADE)
def test_agrees_with_transformers(tmp_path: Path, name: str) -> None:
    assert_agrees_with_transformers(checkpoint(tmp_path / "model", name))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_agrees_with_transformers_in_two_bytes(tmp_path: Path, dtype: str) -> None:
    assert_agrees_with_transformers(checkpoint(tmp_path / "model", "qwen2", dtype))


def test_agrees_with_what_transformers_saved(tmp_path: Path) -> None:
    """Shards, names and ``config.json`` as transformers writes them; biases everywhere."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        attention_bias=True, mlp_bias=True, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert_agrees_with_transformers(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_gives_what_the_gguf_file_gives(tmp_path: Path, architecture: str, dtype: str) -> None:
    file = GGUFFile(tiny_gguf(tmp_path / "a.gguf", architecture, dtype))
    source = open_source(safetensors_folder(file.path, tmp_path / "model", dtype))
    assert source.tensors.keys() == file.tensors.keys()
    for name, info in file.tensors.items():
        assert replace(source.tensors[name], offset=info.offset) == info
        raw, expected = source.tensor(name), file.tensor(name)
        assert raw.shape == expected.shape
        if len(info.shape) == 1:  # rounded to ``dtype`` on the way, and Gemma's norms by 1 - 1
            close = (
                {"rtol": 1e-2, "atol": 1e-2} if dtype == "BF16" else {"rtol": 1e-6, "atol": 1e-6}
            )
            np.testing.assert_allclose(raw.view(np.float32), expected.view(np.float32), **close)
        else:
            np.testing.assert_array_equal(raw, expected)
    for key, value in file.metadata.items():
        if key.startswith(architecture):
            assert source.metadata[key] == pytest.approx(value), key


def test_matrices_stay_mapped(tmp_path: Path) -> None:
    source = open_source(checkpoint(tmp_path / "model", "qwen2"))
    assert not source.tensor("token_embd.weight").flags.writeable  # as only a mapping is


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "llama 3", "F16")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_onnx(open_source(folder), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_two_byte_weights_are_stored_in_two_bytes_and_tied_ones_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "llama tied", "F16")
    weights = sum(tensor.nbytes for tensor in Checkpoint(folder).tensors.values())
    (tmp_path / "built").mkdir()
    write_onnx(open_source(folder), tmp_path / "built")
    built = (tmp_path / "built" / "model.onnx.data").stat().st_size
    tables = 2 * (512 + 64) * 32 * 4
    assert built - tables < weights + (1 << 20)  # constants begin on pages
    assert json.loads((tmp_path / "built" / "edgespec.json").read_text())["weight_bytes"] > weights


class Changed:
    """``source`` with other tensors or metadata."""

    def __init__(
        self,
        source: Source,
        names: Mapping[str, str],
        metadata: Mapping[str, Any],
        zeros: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.path, self._source, self._names, self._zeros = source.path, source, names, zeros
        self.metadata: Mapping[str, Any] = {**source.metadata, **metadata}
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(source.tensors[old], name=name) for name, old in names.items()
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        raw = self._source.tensor(self._names[name])
        return np.zeros_like(raw) if self._zeros(name) else raw


KEPT = {"gemma3": ([0, 4, 5, 6], 7), "smollm3": ([1, 3, 4], 5)}  # with a global, an unrotated one


@pytest.mark.parametrize("architecture", KEPT)
def test_layers_of_a_pruned_model_stay_what_they_were(tmp_path: Path, architecture: str) -> None:
    """They must compute what they do in the whole model when the others add nothing."""
    if architecture == "gemma3" and not WINDOWS:
        pytest.skip("this ONNX Runtime has other sliding windows")
    kept, layers = KEPT[architecture]
    whole = GGUFFile(tiny_gguf(tmp_path / "a.gguf", architecture))
    last = (
        "post_attention_norm post_ffw_norm" if architecture == "gemma3" else "attn_output ffn_down"
    )
    silent = {
        f"blk.{i}.{short}.weight" for i in range(layers) if i not in kept for short in last.split()
    }
    same = {name: name for name in whole.tensors}
    expected = logits_of(Changed(whole, same, {}, silent.__contains__), tmp_path / "whole")
    names = {name: name for name in whole.tensors if not name.startswith("blk.")}
    for new, old in enumerate(kept):
        prefix = f"blk.{old}."
        names |= {
            name.replace(prefix, f"blk.{new}."): name
            for name in whole.tensors
            if name.startswith(prefix)
        }
    metadata = {f"{architecture}.block_count": len(kept), KEPT_LAYERS: kept}
    pruned = Changed(whole, names, metadata)
    np.testing.assert_allclose(logits_of(pruned, tmp_path / "pruned"), expected, rtol=0, atol=1e-3)
    pytest.importorskip("torch")
    from edgespec.export.reference import TorchRuntime

    found = TorchRuntime(pruned, context=64, threads=1).forward(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kept", [[0], [0, 1, 2], "01", [0, -1], [0, 1.5], 7])
def test_kept_layers_that_cannot_be_are_refused(tmp_path: Path, kept: Any) -> None:
    file = GGUFFile(tiny_gguf(tmp_path / "a.gguf"))
    source = Changed(file, {name: name for name in file.tensors}, {KEPT_LAYERS: kept})
    with pytest.raises(UserError, match=KEPT_LAYERS):
        logits_of(source, tmp_path / "built")


# What cannot be read. Each: the checkpoint, its damage, and what the one line must say.
Damage = Callable[[Path], Any]


def config(**changes: Any) -> Damage:
    return lambda folder: configure(folder, **changes)


def tensors(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrite the weights: name → dtype, shape and bytes."""

    def damage(folder: Path) -> None:
        read = Checkpoint(folder)
        found = {
            name: (tensor.dtype, tensor.shape, read.bytes(name).tobytes())
            for name, tensor in read.tensors.items()
        }
        del read
        change(found)
        (folder / "model.safetensors").unlink()
        write_safetensors(folder / "model.safetensors", found)

    return damage


QUERY = "model.layers.0.self_attn.q_proj.weight"


def without(name: str) -> Damage:
    return tensors(lambda found: found.pop(name))


def with_query(dtype: str, shape: tuple[int, ...], size: int) -> Damage:
    return tensors(lambda found: found.update({QUERY: (dtype, shape, b"\0" * size)}))


def with_another(name: str, like: str) -> Damage:
    return tensors(lambda found: found.update({name: found[like]}))


UNREADABLE: dict[str, tuple[str, Damage, str]] = {
    "no config": ("llama", lambda f: (f / "config.json").unlink(), "no config.json; name a .gguf"),
    "no model type": ("llama", config(model_type=None), "type 'None'.*--via optimum"),
    "unknown": (
        "llama",
        config(model_type="mamba"),
        "type 'mamba'; known are llama.*--via optimum",
    ),
    "a list of types": ("llama", config(model_type=["llama"]), "--via optimum"),
    "a classifier": (
        "llama",
        config(architectures=["LlamaForSequenceClassification"]),
        "not a language model",
    ),
    "absent tensor": ("llama", without(QUERY), f"lacks the tensor {QUERY}$"),
    "absent layer": ("llama", config(num_hidden_layers=3), r"lacks the tensor model\.layers\.2\."),
    "absurd layers": ("llama", config(num_hidden_layers=10**8), r"lacks the tensor model\.layers"),
    "one layer too many": (
        "llama",
        config(num_hidden_layers=1),
        r"model\.layers\.1\..*do not have",
    ),
    "absent norm": ("llama", without("model.norm.weight"), r"lacks the tensor model\.norm\.weight"),
    "absent bias": (
        "qwen2",
        without("model.layers.1.self_attn.k_proj.bias"),
        r"lacks the tensor model\.layers\.1\.self_attn\.k_proj\.bias",
    ),
    "absent head": ("llama", without("lm_head.weight"), "lm_head.weight .*tie_word_embeddings"),
    "absent embedding": (
        "llama tied",
        without("model.embed_tokens.weight"),
        "lacks the tensor model.embed_tokens.weight",
    ),
    "tied with a head": ("llama", config(tie_word_embeddings=True), "lm_head.weight is another"),
    "unknown tensor": (
        "llama",
        with_another("model.layers.0.self_attn.sinks", QUERY),
        "tensor model.layers.0.self_attn.sinks that llama models do not have",
    ),
    "a norm of another kind": (
        "llama",
        with_another("model.layers.0.self_attn.q_norm.weight", "model.norm.weight"),
        "q_norm.weight that llama models do not have",
    ),
    "wrong shape": (
        "llama",
        with_query("F32", (255, 256), 4 * 255 * 256),
        rf"{QUERY} .* \(255, 256\), not \(256, 256\)",
    ),
    "one dimension": (
        "llama",
        with_query("F32", (65536,), 4 << 16),
        r"\(65536,\), not \(256, 256\)",
    ),
    "another vocabulary": (
        "llama",
        config(vocab_size=300),
        r"\(298, 256\), not \(300, 256\)",
    ),
    "wrong type": ("llama", with_query("I8", (256, 256), 1 << 16), f"{QUERY} .* type I8"),
    "a type of its own": ("llama", with_query("F64", (256, 256), 8 << 16), f"{QUERY} .* type F64"),
    "hidden size": ("llama", config(hidden_size="many"), "embedding_length = 'many'"),
    "no hidden size": ("llama", config(hidden_size=None), "does not say llama.embedding_length"),
    "no phi size": ("phi3", config(hidden_size=None), "does not say phi3.embedding_length"),
    "no vocabulary": ("llama", config(vocab_size=None), "does not say llama.vocab_size"),
    "no heads": ("llama", config(num_attention_heads=0), "head_count"),
    "odd heads": ("llama", config(head_dim=63), "do not go together"),
    "activation": ("llama", config(hidden_act="relu2"), "activation 'relu2'.*--via optimum"),
    "yarn": ("llama", config(rope_scaling={"rope_type": "yarn"}), "rotary scaling 'yarn'"),
    "llama 3's for qwen": ("qwen2", config(rope_scaling=LLAMA3), "rotary scaling 'llama3'"),
    "no scaling": ("llama", config(rope_scaling="linear"), "rotary parameters linear"),
    "no low factor": ("llama", config(rope_scaling={"type": "llama3"}), "low_freq_factor"),
    "low above high": (
        "llama",
        config(rope_scaling=LLAMA3 | {"low_freq_factor": 5.0}),
        "low_freq_factor 5.0 and high_freq_factor 4.0",
    ),
    "part of a head": ("llama", config(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "no part of a head": ("phi3", config(partial_rotary_factor=0), "partial_rotary_factor"),
    "few divisors": (
        "phi3 long",
        config(rope_scaling=LONGROPE | {"short_factor": [1.0]}),
        "24 numbers of short_factor",
    ),
    "divisors of zero": (
        "phi3 long",
        config(rope_scaling=LONGROPE | {"long_factor": [0.0] * 24}),
        "24 numbers of long_factor",
    ),
    "base": ("llama", config(rope_theta="1e4"), "freq_base"),
    "window of some layers": ("qwen2", config(use_sliding_window=True), "sliding window for qwen2"),
    "window": ("mistral", config(sliding_window=-3), "sliding_window"),
    "layers": ("smollm3", config(no_rope_layers=[1, 1, 0, 1, 1]), "no_rope_layers"),
    "every third": ("smollm3", config(no_rope_layer_interval=3), "no_rope_layer_interval 3"),
    "mixed layers": (
        "gemma3",
        config(layer_types=["full_attention", "sliding_attention"]),
        "layer_types",
    ),
    "softcapping": ("gemma3", config(final_logit_softcapping=30.0), "final_logit_softcapping"),
    "scale": ("gemma3", config(query_pre_attn_scalar=168), "query_pre_attn_scalar 168"),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_read_failure_is_one_line_with_its_cause(tmp_path: Path, damage: str) -> None:
    name, make, message = UNREADABLE[damage]
    folder = checkpoint(tmp_path / "model", name)
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)


def test_a_head_saved_beside_the_embedding_it_is_tied_to_is_left_out(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "llama tied")
    with_another("lm_head.weight", "model.embed_tokens.weight")(folder)
    assert "output.weight" not in open_source(folder).tensors


def test_buffers_that_older_checkpoints_hold_are_passed_over(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    with_another("model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight")(folder)
    assert "output.weight" in SafetensorsSource(folder).tensors


@pytest.mark.slow
def test_a_checkpoint_of_smollm2_goes_on_as_it_should(smollm2: Path, tmp_path: Path) -> None:
    folder = safetensors_folder(smollm2, tmp_path / "model", "F16", shards=3)
    (tmp_path / "built").mkdir()
    write_onnx(open_source(folder), tmp_path / "built")
    runtime = OnnxRuntime(tmp_path / "built", context=128, exact=False)
    assert_goes_on_as_it_should(runtime, smollm2)
    runtime.close()
