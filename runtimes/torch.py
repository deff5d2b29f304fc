"""PyTorch, through transformers: the numerical reference that the other runtimes are tested against.

It runs a GGUF file's weights, dequantized to float32, in the model's published implementation. It is
meant to be right and plain, not fast. Extra ``[torch]`` (transformers 5 or later).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes import ContextOverflow, FloatArray, Logits, ModelInfo

try:
    import torch
    import transformers
except ImportError as error:
    raise UserError("the torch runtime is not installed: pip install 'edgespec[torch]'") from error

# Architecture → the names of its classes in transformers.
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
}

# GGUF's names of tensors → transformers' names. Norms named twice differ between architectures.
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_LAYER_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class TorchRuntime:
    """A ``Runtime`` over transformers, in float32, from a GGUF file or a safetensors folder."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int = 4096,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Load the model.

        ``device`` is torch's name of one. Raises ``UserError`` where the model cannot be loaded.
        """
        if threads:
            torch.set_num_threads(threads)
        path = Path(path)
        model = _load_folder(path) if path.is_dir() else _load_gguf(GGUFFile(path))
        self._model = model.to(device).eval()
        # Without the configuration every layer keeps everything, sliding ones too: `keep` needs it.
        self._cache: Any = transformers.DynamicCache()
        self._device = device
        self.length = 0
        self.info = ModelInfo(
            name=path.stem,
            architecture=model.config.model_type,
            vocab_size=model.get_output_embeddings().weight.shape[0],
            layers=model.config.num_hidden_layers,
            context=context,
            weight_bytes=sum(weight.nbytes for weight in model.parameters()),
            device=device,
            runtime="torch",
        )

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        """See ``Runtime``."""
        rows = len(tokens)
        if self.length + rows > self.info.context:
            raise ContextOverflow(f"{self.length} + {rows} tokens exceed {self.info.context}")
        self._select(range(self.length))
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(tokens)], device=self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=slice({"all": 0, "last": rows - 1, "none": rows}[logits], rows),
                **({} if parents is None else self._tree(parents)),
            )
        found: FloatArray = output.logits[0].cpu().numpy()
        return found

    def keep(self, rows: Sequence[int]) -> None:
        """See ``Runtime``."""
        self._select([*range(self.length), *(self.length + row for row in rows)])
        self.length += len(rows)

    def truncate(self, length: int) -> None:
        """See ``Runtime``."""
        self.length = length
        self._select(range(length))

    def close(self) -> None:
        """See ``Runtime``."""
        del self._model, self._cache

    def _select(self, positions: Sequence[int]) -> None:
        """Keep only these rows of the cache."""
        index = torch.tensor(positions, dtype=torch.long, device=self._device)
        for layer in self._cache.layers:
            if layer.keys.shape[-2] != len(positions):
                layer.keys = layer.keys.index_select(-2, index)
                layer.values = layer.values.index_select(-2, index)

    def _tree(self, parents: Sequence[int]) -> dict[str, Any]:
        """The positions and masks of a tree: a row sees the cache, its ancestors and itself."""
        rows = len(parents)
        sees = torch.zeros(rows, self.length + rows, dtype=torch.bool)
        sees[:, : self.length] = True
        positions = torch.zeros(self.length + rows, dtype=torch.long)
        positions[: self.length] = torch.arange(self.length)
        for row, parent in enumerate(parents):
            if parent >= 0:
                sees[row] = sees[parent]
            sees[row, self.length + row] = True
            positions[self.length + row] = sees[row].sum() - 1
        mask: Any = sees[None, None].to(self._device)
        if (window := getattr(self._model.config, "sliding_window", None)) is not None:
            near = positions > positions[self.length :, None] - window
            mask = {
                "full_attention": mask,
                "sliding_attention": (sees & near)[None, None].to(self._device),
            }
        own_positions = positions[None, self.length :].to(self._device)
        return {"attention_mask": mask, "position_ids": own_positions}


def _load_folder(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def _load_gguf(file: GGUFFile) -> Any:
    if file.architecture not in CLASSES:
        raise UserError(f"the torch runtime cannot run the architecture {file.architecture!r}")
    config_class, model_class = CLASSES[file.architecture]
    config = getattr(transformers, config_class)(**_config(file))
    model, report = getattr(transformers, model_class).from_pretrained(
        None,
        config=config,
        state_dict=_weights(file),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise UserError(f"{file.path} does not hold a whole {file.architecture} model: {report}")
    if "rope_freqs.weight" in file.tensors:
        model.model.rotary_emb.inv_freq /= _tensor(file, "rope_freqs.weight")
    return model


def _config(file: GGUFFile) -> dict[str, Any]:
    """The keyword arguments of the architecture's configuration class."""

    def value(key: str, default: Any = None) -> Any:
        found = file.metadata.get(f"{file.architecture}.{key}", default)
        if found is None:
            raise UserError(f"{file.path} lacks the metadata {file.architecture}.{key}")
        return found

    heads, hidden = value("attention.head_count"), value("embedding_length")
    rope = {"rope_type": "default", "rope_theta": value("rope.freq_base", 10_000.0)}
    scaling = value("rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": value("rope.scaling.factor")}
    elif scaling != "none":
        raise UserError(f"the torch runtime cannot run the rope scaling {scaling!r}")
    config = {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", hidden // heads),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": value("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope,
        "pad_token_id": None,
    }
    if file.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": value("rope.freq_base_swa", 10_000.0)}
        config |= {
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
            "sliding_window": value("attention.sliding_window"),
            "sliding_window_pattern": value("attention.sliding_window_pattern", 6),
            "query_pre_attn_scalar": config["head_dim"],
        }
    return config


def _tensor(file: GGUFFile, name: str) -> Any:
    info = file.tensors[name]
    values = gguf.quants.dequantize(file.tensor(name), gguf.GGMLQuantizationType[info.type])
    return torch.from_numpy(np.array(values, np.float32).reshape(info.shape))


def _weights(file: GGUFFile) -> dict[str, Any]:
    """The weights under transformers' names, with GGUF's conventions undone."""
    layer_names = GEMMA_LAYER_NAMES if file.architecture == "gemma3" else LAYER_NAMES
    weights = {}
    for name in file.tensors.keys() - {"rope_freqs.weight"}:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        layer, short, kind = match.groups() if match else (None, "", "")
        names, prefix = (layer_names, f"model.layers.{layer}.") if layer else (OUTER_NAMES, "")
        if short not in names:
            raise UserError(f"the torch runtime does not know the tensor {name} of {file.path}")
        tensor = _tensor(file, name)
        if file.architecture == "llama" and short in ("attn_q", "attn_k"):
            # Llama files store each head's rotated pairs side by side; transformers, as two halves.
            heads = file.metadata["llama.attention.head_count" + ("_kv" * (short == "attn_k"))]
            pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        if file.architecture == "gemma3" and short.endswith("norm"):
            tensor = tensor - 1  # transformers' Gemma multiplies by 1 + weight
        weights[f"{prefix}{names[short]}.{kind}"] = tensor
    return weights
