"""The PyTorch reference: the runtimes and quantized weights are compared with it in float32.

It runs a source's weights, dequantized to float32, in transformers' implementation of the model. It is
correct and simple, not fast. Extra ``[torch]`` (transformers 5 or later).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgespec.core.runtime import FloatArray, Logits, ModelInfo, logit_rows
from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.architectures.common import Config
from edgespec.export.quants import FORMATS, dequantize
from edgespec.export.source import Source
from edgespec.models.gguf import GGUFFile
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.runtimes.rows import RowTracker

try:
    import torch
    import transformers
except ImportError as error:
    raise UserError("the torch runtime is not installed: pip install 'edgespec[torch]'") from error

# Architecture → the names of its classes in transformers.
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),  # GGUF calls it llama too
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
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
FUSED_LAYER_NAMES = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


class TorchRuntime(RowTracker):
    """A ``Runtime`` over transformers, in float32.

    From any ``Source`` or a GGUF file, by their names and conventions; or from a safetensors folder,
    which transformers reads by itself.
    """

    def __init__(
        self,
        model: str | Path | Source,
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
        path = Path(model) if isinstance(model, (str, Path)) else model.path
        kept = None
        if isinstance(model, (str, Path)) and path.is_dir():
            loaded = _load_folder(path)
        else:
            source = GGUFFile(model) if isinstance(model, (str, Path)) else model
            loaded, kept = load_model(source), source.metadata.get(TOKEN_IDS)
        self._model = loaded.to(device).eval()
        # Without the configuration every layer keeps everything, sliding ones too: `keep` needs it.
        self._cache: Any = transformers.DynamicCache()
        self._device = device
        super().__init__()
        self.info = ModelInfo(
            name=path.stem,
            architecture=loaded.config.model_type,
            vocab_size=len(kept) if kept else loaded.get_output_embeddings().weight.shape[0],
            layers=loaded.config.num_hidden_layers,
            context=context,
            weight_bytes=sum(weight.nbytes for weight in loaded.parameters()),
            device=device,
            runtime="torch",
            token_ids=tuple(kept) if kept else None,
            trees=True,
            hidden_size=loaded.config.hidden_size,
        )

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        """See ``Runtime``."""
        rows = len(tokens)
        tree = self._append(rows, parents, features)
        asked = slice(rows - logit_rows(logits, rows), rows)
        self._select(range(self.length))
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([list(tokens)], device=self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=asked,
                output_hidden_states=features,
                **({} if tree is None else self._tree(tree)),
            )
        if features:  # the last hidden states are those after the final norm
            self.features = output.hidden_states[-1][0, asked].cpu().numpy()
        found: FloatArray = output.logits[0].cpu().numpy()
        return found if self.info.token_ids is None else found[:, list(self.info.token_ids)]

    def keep(self, rows: Sequence[int]) -> None:
        """See ``Runtime``."""
        start = self.length
        super().keep(rows)
        self._select([*range(start), *(start + row for row in rows)])

    def truncate(self, length: int) -> None:
        """See ``Runtime``."""
        super().truncate(length)
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
            local = (sees & near)[None, None].to(self._device)
            if hasattr(self._model.config, "layer_types"):  # some of its layers only
                mask = {"full_attention": mask, "sliding_attention": local}
            else:
                mask = local
        own_positions = positions[None, self.length :].to(self._device)
        return {"attention_mask": mask, "position_ids": own_positions}


def _load_folder(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )


def load_model(source: Source) -> Any:
    """The transformers model, in float32, of the weights in ``source``.

    Raises ``UserError`` where weights are missing or unknown.
    """
    config = read_config(source.metadata)
    is_mistral = config.architecture == "llama" and config.window
    config_class, model_class = CLASSES["mistral" if is_mistral else config.architecture]
    weights = _weights(source, config)
    model, report = getattr(transformers, model_class).from_pretrained(
        None,
        config=getattr(transformers, config_class)(**_arguments(source, config)),
        state_dict=weights,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise UserError(
            f"{source.path} does not hold a whole {config.architecture} model: {report}"
        )
    if "rope_freqs.weight" in source.tensors:
        model.model.rotary_emb.inv_freq /= _tensor(source, "rope_freqs.weight")
    return model


def _arguments(source: Source, config: Config) -> dict[str, Any]:
    """The keyword arguments of the architecture's configuration class."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scale != 1:
        rope |= {"rope_type": "linear", "factor": config.rope_scale}
    arguments = {
        "vocab_size": source.tensors["token_embd.weight"].shape[0],
        "hidden_size": config.hidden,
        "intermediate_size": source.metadata.get(f"{config.architecture}.feed_forward_length"),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": "output.weight" not in source.tensors,
        "rope_parameters": rope,
        "pad_token_id": None,
        "sliding_window": config.window or None,
        "attention_bias": "blk.0.attn_output.bias" in source.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in source.tensors,
    }
    layers = range(config.layers)
    if config.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": config.rope_local_base}
        arguments |= {
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
            "layer_types": [
                "sliding_attention" if config.is_local(i) else "full_attention" for i in layers
            ],
            "query_pre_attn_scalar": config.head_dim,
        }
    if config.architecture == "smollm3":
        arguments["no_rope_layers"] = [int(config.is_rotated(i)) for i in layers]
    if config.architecture == "phi3":
        rope["partial_rotary_factor"] = config.rope_dims / config.head_dim
        if "rope_factors_short.weight" in source.tensors:
            factors = _tensor(source, "rope_factors_short.weight").tolist()
            rope |= {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,  # the context ends where these would begin
                "attention_factor": config.rope_gain,
            }
            arguments["original_max_position_embeddings"] = config.context
    return arguments


def _tensor(source: Source, name: str) -> Any:
    info = source.tensors[name]
    if info.type not in (*gguf.GGMLQuantizationType.__members__, *FORMATS):
        raise UserError(f"the torch runtime does not know the type {info.type} of {name}")
    values = dequantize(source.tensor(name), info.type, info.shape[-1])
    return torch.from_numpy(np.array(values, np.float32).reshape(info.shape))


def _weights(source: Source, config: Config) -> dict[str, Any]:
    """The weights under transformers' names, with GGUF's conventions undone."""
    layer_names = GEMMA_LAYER_NAMES if config.architecture == "gemma3" else LAYER_NAMES
    if config.fused_gate:
        layer_names = LAYER_NAMES | FUSED_LAYER_NAMES
    weights = {}
    for name in source.tensors.keys() - ROPE_TENSORS:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        layer, short, kind = match.groups() if match else (None, "", "")
        names, prefix = (layer_names, f"model.layers.{layer}.") if layer else (OUTER_NAMES, "")
        if short not in names:
            raise UserError(f"the torch runtime does not know the tensor {name} of {source.path}")
        tensor = _tensor(source, name)
        if config.rope_interleaved and short in ("attn_q", "attn_k"):
            # Llama files store each head's rotated pairs side by side; transformers, as two halves.
            heads = config.heads if short == "attn_q" else config.kv_heads
            pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        if config.architecture == "gemma3" and short.endswith("norm"):
            tensor = tensor - 1  # transformers' Gemma multiplies by 1 + weight
        if name == "output.weight" and (kept := source.metadata.get(TOKEN_IDS)) is not None:
            whole = torch.zeros(source.tensors["token_embd.weight"].shape)
            whole[list(kept)] = tensor
            tensor = whole
        weights[f"{prefix}{names[short]}.{kind}"] = tensor
    return weights
