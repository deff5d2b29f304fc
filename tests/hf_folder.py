"""Makes a safetensors folder, as model hubs have them, from a GGUF file: for tests of what reads one.

The weights are dequantized and GGUF's conventions undone. Needs neither torch nor safetensors.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer

# Architecture → model_type and class, as config.json has them.
CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),  # GGUF calls it llama too
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}


def safetensors_folder(
    gguf_path: str | Path, folder: str | Path, dtype: str = "F32", *, shards: int = 1
) -> Path:
    """Write ``config.json``, the tokenizer's files and the weights (``F32``, ``F16`` or ``BF16``).

    More than one shard: ``model-00001-of-0000N.safetensors`` … and their index. Returns ``folder``.
    """
    file, folder = GGUFFile(gguf_path), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_gguf(file)
    tokenizer.save(folder)
    config = _config(file) | {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
        "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    stored = [name for name in file.tensors if not name.startswith("rope_")]
    names = sorted((_hf_name(file, name), name) for name in stored)
    if shards == 1:
        _write(folder / "model.safetensors", file, names, dtype)
        return folder
    weight_map = {}
    for shard in range(shards):
        path = folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        _write(path, file, part, dtype)
        weight_map |= {name: path.name for name, _ in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write tensors, each a dtype by safetensors' name, a shape and bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, _, data in tensors.values())


def _write(path: Path, file: GGUFFile, names: list[tuple[str, str]], dtype: str) -> None:
    tensors = {}
    for hf_name, name in names:
        data = np.asarray(quantize(_values(file, name), Type[dtype])).tobytes()
        tensors[hf_name] = (dtype, file.tensors[name].shape, data)
    write_safetensors(path, tensors)


def _hf_name(file: GGUFFile, name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    assert match, name
    layer, short, kind = match.groups()
    if layer is None:
        return f"{OUTER_NAMES[short]}.{kind}"
    names = LAYER_NAMES | OTHER_NAMES.get(file.architecture, {})
    return f"model.layers.{layer}.{names[short]}.{kind}"


def _values(file: GGUFFile, name: str) -> npt.NDArray[np.float32]:
    """A tensor's values in float32, in transformers' order and convention."""
    info = file.tensors[name]
    values = np.asarray(dequantize(file.tensor(name), Type[info.type]), np.float32)
    values = values.reshape(info.shape)
    short = name.split(".")[-2]
    if file.architecture in ("llama", "smollm3") and short in ("attn_q", "attn_k"):
        # Llama files store each head's rotated pairs side by side; transformers, as two halves.
        key = "attention.head_count" + "_kv" * (short == "attn_k")
        heads = file.metadata[f"{file.architecture}.{key}"]
        pairs = values.reshape(heads, -1, 2, *info.shape[1:])
        values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(info.shape)
    if file.architecture == "gemma3" and short.endswith("norm"):
        values = values - 1  # transformers' Gemma multiplies by 1 + weight
    return values


def _config(file: GGUFFile) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{file.architecture}.{key}", default)

    heads, hidden = value("attention.head_count"), value("embedding_length")
    window, context = value("attention.sliding_window"), value("context_length")
    is_mistral = file.architecture == "llama" and window is not None
    model_type, class_name = CLASSES["mistral" if is_mistral else file.architecture]
    assert "rope_freqs.weight" not in file.tensors, "config.json has a formula for them"
    scaling = None
    if (kind := value("rope.scaling.type", "none")) != "none":
        assert kind == "linear", kind
        scaling = {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    config = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", hidden // heads),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": context,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": value("rope.freq_base", 10_000.0),
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "pad_token_id": None,
    }
    if is_mistral:
        config["sliding_window"] = window
    if file.architecture == "gemma3":
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_local_base_freq": value("rope.freq_base_swa", 10_000.0),
            "sliding_window": window,
            "sliding_window_pattern": value("attention.sliding_window_pattern", 6),
            "query_pre_attn_scalar": config["head_dim"],
        }
        del config["hidden_act"]
    if file.architecture == "phi3":
        rotated = value("rope.dimension_count", config["head_dim"]) / config["head_dim"]
        trained = value("rope.scaling.original_context_length", context)
        config |= {
            "sliding_window": window,
            "partial_rotary_factor": rotated,
            "original_max_position_embeddings": trained,
        }
        if "rope_factors_short.weight" in file.tensors:
            config["rope_scaling"] = {
                "rope_type": "longrope",
                "attention_factor": value("rope.scaling.attn_factor"),
                "short_factor": _values(file, "rope_factors_short.weight").tolist(),
                "long_factor": _values(file, "rope_factors_long.weight").tolist(),
            }
    return config
