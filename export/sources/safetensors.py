"""A Hugging Face checkpoint, a folder of ``config.json`` and safetensors files, as a source.

Names are translated by the ``gguf`` package's tables. Where GGUF stores weights in another way, a
tensor is converted when it is asked for: llama's query and key rows, Gemma's norms, vectors as F32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.architectures import ARCHITECTURES, MODEL_TYPES, llama, phi3, read_config
from edgespec.export.architectures.common import Architecture, Config, count
from edgespec.export.quants import FORMATS, dequantize
from edgespec.export.sources.packed import PackedCheckpoint
from edgespec.models.gguf import TensorInfo
from edgespec.models.safetensors import StoredTensor

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_FLOATS = ("F32", "F16", "BF16")
_UNUSED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")
_TIED = ("gemma3", "smollm3")
"""Model types with heads tied to the embedding unless ``config.json`` states otherwise."""


class SafetensorsSource:
    """See ``Source``. Raises ``UserError`` where the folder is no whole checkpoint of a known kind."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self._checkpoint = PackedCheckpoint(folder)
        config = self._checkpoint.config
        self.metadata: Mapping[str, Any] = {**_metadata(self.path, config)}
        self._config = read_config(self.metadata)
        self._stored = self._find_tensors()
        self._made = _rope_tensors(self._config, config)
        shapes = _shapes(self._config, self.metadata)
        self.tensors: Mapping[str, TensorInfo] = {
            name: self._info(name, shapes) for name in (*self._stored, *self._made)
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        if name in self._made:
            return self._made[name][None].view(np.uint8)
        if name not in self._stored:
            raise UserError(f"{self.path} has no tensor {name}; is it a complete language model?")
        stored, short = self._stored[name], name.split(".")[-2]
        raw = self._checkpoint.bytes(stored.name)
        if len(stored.shape) == 1:
            vector = dequantize(raw, stored.dtype)
            if self._architecture == "gemma3" and short.endswith("norm"):
                vector = vector + 1  # the checkpoint has what is added to 1
            if self._is_permuted(short):
                vector = vector[:, self._permutation(vector.size)]
            return np.ascontiguousarray(vector).view(np.uint8)
        return raw[self._permutation(len(raw))] if self._is_permuted(short) else raw

    @property
    def _architecture(self) -> str:
        return self._config.architecture

    def _is_permuted(self, short: str) -> bool:
        return self._config.rope_interleaved and short in ("attn_q", "attn_k")

    def _permutation(self, rows: int) -> npt.NDArray[np.intp]:
        """GGUF's order of rows: a head's rotated pairs are neighbours, not two halves."""
        halves = np.arange(rows, dtype=np.intp).reshape(-1, 2, self._config.head_dim // 2)
        order: npt.NDArray[np.intp] = halves.swapaxes(1, 2).ravel()
        return order

    def _find_tensors(self) -> dict[str, StoredTensor]:
        """The checkpoint's tensors under GGUF's names: none missing, none that would be left out."""
        blocks = min(self._config.layers, len(self._checkpoint.tensors) + 1)  # each has some
        kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[self._architecture]
        table = gguf.get_tensor_name_map(kind, blocks)
        needed, optional = _names(ARCHITECTURES[self._architecture], blocks)
        found = {}
        for name, stored in self._checkpoint.tensors.items():
            if name.endswith(_UNUSED):
                continue
            translated = table.get_name(name, (".weight", ".bias"))
            if translated not in needed and translated not in optional:
                raise UserError(
                    f"{self.path} has a tensor {name[:64]} that {self._architecture} models do not "
                    "have; try --via optimum"
                )
            found[translated] = stored
        tied = self._checkpoint.config.get("tie_word_embeddings", self._architecture in _TIED)
        if tied and HEAD in found:
            self._check_tied(found.pop(HEAD), found.get(EMBEDDING))
        for name in sorted((needed - {HEAD} if tied else needed) - found.keys()):
            hint = " (or tie_word_embeddings is missing in config.json)" * (name == HEAD)
            raise UserError(f"{self.path} lacks the tensor {_original(table, name)}{hint}")
        return found

    def _check_tied(self, head: StoredTensor, embedding: StoredTensor | None) -> None:
        """A tied head may be in the file too, if it is the embedding."""
        if embedding is None or not np.array_equal(
            self._checkpoint.bytes(head.name), self._checkpoint.bytes(embedding.name)
        ):
            raise UserError(
                f"config.json of {self.path} says that the head is the embedding "
                f"(tie_word_embeddings), and {head.name} is another"
            )

    def _info(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> TensorInfo:
        if name in self._made:
            return TensorInfo(name, "F32", self._made[name].shape, 0, self._made[name].nbytes)
        stored, (short, suffix) = self._stored[name], name.split(".")[-2:]
        shape = shapes[short] if suffix == "weight" else shapes[short][:1]
        if stored.shape != shape:
            raise UserError(
                f"tensor {stored.name} of {self.path} has the shape {stored.shape}, not {shape} as "
                "config.json has it"
            )
        if stored.dtype not in _FLOATS and (len(shape) == 1 or stored.dtype not in FORMATS):
            raise UserError(
                f"tensor {stored.name} of {self.path} is of type {stored.dtype}, not F32, F16 or BF16"
            )
        if len(shape) == 1:
            return TensorInfo(name, "F32", shape, 0, 4 * shape[0])
        return TensorInfo(name, stored.dtype, shape, 0, stored.row_bytes)


def _metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("model_type"))
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{folder} is a model of type {kind[:64]!r}; known are {', '.join(MODEL_TYPES)}; "
            "others may be exported with --via optimum"
        )
    if (names := config.get("architectures")) and "ForCausalLM" not in str(names):
        raise UserError(f"{folder} is a {str(names)[:64]}, not a language model (…ForCausalLM)")
    return {**MODEL_TYPES[kind](config), "general.name": folder.resolve().name}


def _names(architecture: Architecture, blocks: int) -> tuple[set[str], set[str]]:
    """GGUF's names of the tensors that a model must have, and of those that it may have."""
    matrices = [short for short in architecture.layer_tensors if not short.endswith("norm")]
    needed, optional = {EMBEDDING, "output_norm.weight", HEAD}, set()
    for block in range(blocks):
        needed |= {f"blk.{block}.{short}.weight" for short in architecture.layer_tensors}
        needed |= {f"blk.{block}.{short}.bias" for short in architecture.biases}
        optional |= {f"blk.{block}.{short}.bias" for short in matrices}
    return needed, optional


def _rope_tensors(config: Config, checkpoint: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Divisors of the rotary frequencies, which GGUF keeps as tensors and ``config.json`` as numbers."""
    found: dict[str, FloatArray | None] = {}
    if config.architecture == "llama":
        found = {"rope_freqs": llama.rope_divisors(checkpoint, config.rope_base, config.rope_dims)}
    elif config.architecture == "phi3":
        found = {
            f"rope_factors_{kind}": phi3.rope_divisors(checkpoint, kind, config.rope_dims)
            for kind in ("long", "short")
        }
    return {f"{name}.weight": value for name, value in found.items() if value is not None}


def _shapes(config: Config, metadata: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape that each weight must have, by its short name; a bias has the first length."""
    hidden, head = config.hidden, config.head_dim
    queries, keys = config.heads * head, config.kv_heads * head
    width, vocab = count(metadata, "feed_forward_length"), count(metadata, "vocab_size")
    norms = ("output_norm", "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
    return {
        **dict.fromkeys(norms, (hidden,)),
        **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (head,)),
        **dict.fromkeys(("token_embd", "output"), (vocab, hidden)),
        "attn_q": (queries, hidden),
        **dict.fromkeys(("attn_k", "attn_v"), (keys, hidden)),
        "attn_qkv": (queries + 2 * keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (width, hidden),
        "ffn_up": (width * (1 + config.fused_gate), hidden),
        "ffn_down": (hidden, width),
    }


def _original(table: Any, name: str) -> str:
    """Hugging Face's name of a tensor, of those that the table knows."""
    stem, _, suffix = name.rpartition(".")
    found = [key for key in table.mapping if table.mapping[key][1] == stem]
    best = [
        key
        for key in found
        if key.startswith(("model.layers.", "model.embed", "model.norm", "lm_head"))
    ]
    return f"{(best or found)[0]}.{suffix}"
