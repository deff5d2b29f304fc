"""A model's own weights as an ONNX graph: what its two forms have in common.

``NBitsDecoder`` takes ONNX Runtime's own operators, ``KernelDecoder`` those of ``edgespec.kernels``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.architectures.common import Config
from edgespec.export.graph import Graph
from edgespec.export.source import Source
from edgespec.models.gguf import TensorInfo
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.progress import Progress

SPARE_POSITIONS = 64
"""Positions after the context, for the padding of the last passes."""


class Decoder(ABC):
    """Builds the graph of one model, layer by layer.

    Every form has the inputs ``tokens`` int64 ``[1, n]`` and ``logit_rows`` int64 ``[m]``, the rows
    whose logits are wanted, and the output ``logits`` float32 ``[m, vocab_size]``.
    """

    types: Collection[str]
    """Types of tensors that it multiplies."""

    def __init__(self, source: Source, config: Config, graph: Graph, progress: Progress) -> None:
        self.source, self.config, self.graph, self.progress = source, config, graph, progress
        self.weight_bytes = 0
        """Bytes of weights that one pass reads: all but the embedding, as they are stored."""

    def build(self) -> None:
        config, graph = self.config, self.graph
        tokens = graph.input("tokens", np.int64, [1, "n"])
        rows = graph.input("logit_rows", np.int64, ["m"])
        self.inputs()
        self.rotary("", config.rope_base, config.rope_scale)
        if config.rope_local_base:
            self.rotary("local_", config.rope_local_base, 1.0)
        residual, delta = self.embed(tokens), ""
        for layer in range(config.layers):
            name = f"blk.{layer}."
            normed, residual = self.add_norm(residual, delta, name + "attn_norm")
            delta = self.attention(normed, layer)
            if self.has(name + "post_attention_norm"):
                delta = self.norm(delta, name + "post_attention_norm")
            normed, residual = self.add_norm(residual, delta, name + "ffn_norm")
            delta = self.feed_forward(normed, layer)
            if self.has(name + "post_ffw_norm"):
                delta = self.norm(delta, name + "post_ffw_norm")
        [residual] = graph.node("Gather", [residual, rows], axis=1)
        [delta] = graph.node("Gather", [delta, rows], axis=1)
        normed, _ = self.add_norm(residual, delta, "output_norm")
        logits = self.head(normed)
        shape = graph.constant("logits_shape", np.array([-1, self.vocab_size], np.int64))
        graph.node("Reshape", [logits, shape], ["logits"])
        graph.output("logits", np.float32, ["m", self.vocab_size])

    @abstractmethod
    def inputs(self) -> None:
        """Declare the inputs besides ``tokens`` and ``logit_rows``."""

    @abstractmethod
    def embed(self, tokens: str) -> str:
        """Rows of the embedding."""

    @abstractmethod
    def attention(self, value: str, layer: int) -> str:
        """A layer's attention and its output projection."""

    @abstractmethod
    def feed_forward(self, value: str, layer: int) -> str: ...

    @abstractmethod
    def norm(self, value: str, name: str) -> str:
        """RMSNorm with the gain ``name``."""

    @abstractmethod
    def add_norm(self, residual: str, delta: str, name: str) -> tuple[str, str]:
        """RMSNorm of ``residual + delta`` (``delta`` may be absent); returns it and the sum."""

    @abstractmethod
    def head(self, normed: str) -> str:
        """Logits ``[1, m, vocab_size]``."""

    @abstractmethod
    def estimated_bytes(self) -> int:
        """About what the built model takes on the disk."""

    @property
    def table_bytes(self) -> int:
        """Bytes of the rotary tables."""
        return 4 * (self.config.context + SPARE_POSITIONS) * self.config.rope_dims * 2

    @property
    def head_name(self) -> str:
        return "output" if self.has("output") else "token_embd"

    def scaled(self, embedding: str) -> str:
        """The embedding's rows times the model's factor."""
        if self.config.embedding_scale == 1:
            return embedding
        scale = np.array(self.config.embedding_scale, np.float32)
        factor = self.graph.constant("embedding_scale", scale)
        return self.graph.node("Mul", [embedding, factor])[0]

    @property
    def vocab_size(self) -> int:
        """Columns of the logits: the tokens of a trimmed head, or rows of the embedding."""
        kept = self.source.metadata.get(TOKEN_IDS)
        return self.weight("token_embd").rows if kept is None else len(kept)

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.source.tensors

    def weight(self, name: str) -> TensorInfo:
        """The place of a matrix in the source. Raises ``UserError`` where it is absent or of a type without kernel."""
        if not self.has(name):
            raise UserError(
                f"{self.source.path} has no tensor {name}.weight; is it a complete language model?"
            )
        info = self.source.tensors[name + ".weight"]
        if info.type not in self.types:
            raise UserError(
                f"tensor {info.name} has the type {info.type}, which the onnx runtime cannot take; "
                "try --runtime llama-cpp"
            )
        return info

    def vector(self, name: str, length: int) -> FloatArray:
        raw, info = self.source.tensor(name), self.source.tensors[name]
        if info.type != "F32" or info.shape != (length,):
            raise UserError(f"tensor {name} is {info.type} {info.shape}, not F32 ({length},)")
        return raw.view(np.float32).ravel()

    def rotary(self, prefix: str, base: float, scale: float) -> None:
        """Cosines and sines of every position, ``[context, rope_dims / 2]`` (RoPE, Su et al. 2021)."""
        dims = np.arange(0, self.config.rope_dims, 2, dtype=np.float64)
        frequencies = base ** (-dims / self.config.rope_dims) / scale
        for divisors in ("rope_freqs", "rope_factors_short"):
            if not prefix and self.has(divisors):
                frequencies /= self.vector(divisors + ".weight", len(dims))
        positions = np.arange(self.config.context + SPARE_POSITIONS)
        angles, gain = positions[:, None] * frequencies, self.config.rope_gain
        self.graph.constant(prefix + "cos", (gain * np.cos(angles)).astype(np.float32))
        self.graph.constant(prefix + "sin", (gain * np.sin(angles)).astype(np.float32))

    def attention_matrices(self, layer: int) -> tuple[list[str], list[int]]:
        """The matrices of queries, keys and values, and their rows; one of all if the file has them as one."""
        config, name = self.config, f"blk.{layer}."
        sizes = [config.heads * config.head_dim] + [config.kv_heads * config.head_dim] * 2
        if self.has(name + "attn_qkv"):
            return [name + "attn_qkv"], [sum(sizes)]
        return [name + f"attn_{letter}" for letter in "qkv"], sizes

    def gate_matrices(self, layer: int) -> tuple[list[str], list[int], int]:
        """The matrices of gate and up, and their rows; how many rows each of the two has."""
        name = f"blk.{layer}."
        rows = self.weight(name + "ffn_up").rows
        if self.config.fused_gate:  # the gate's rows are the first half of "up"
            return [name + "ffn_up"], [rows], rows // 2
        return [name + "ffn_gate", name + "ffn_up"], [rows] * 2, rows

    def bias(self, names: Sequence[str], sizes: Sequence[int]) -> str:
        """The biases of matrices, one after the other, 0 for those without; empty where none has one."""
        if names[0] == "token_embd":
            names = ["output"]  # a tied head
        if names[0].endswith("attn_qkv") and f"{names[0]}.bias" not in self.source.tensors:
            config, stem = self.config, names[0].removesuffix("qkv")  # its parts may have them
            names = [stem + letter for letter in "qkv"]
            sizes = [config.heads * config.head_dim] + [config.kv_heads * config.head_dim] * 2
        if not any(f"{name}.bias" in self.source.tensors for name in names):
            return ""
        values = [
            self.vector(f"{name}.bias", size)
            if f"{name}.bias" in self.source.tensors
            else np.zeros(size, np.float32)
            for name, size in zip(names, sizes, strict=True)
        ]
        return self.graph.constant(f"{names[0]}.bias", np.concatenate(values))

    def checked(self, names: Sequence[str], sizes: Sequence[int], columns: int) -> list[TensorInfo]:
        """The places of matrices that must have so many rows and columns. Raises ``UserError``."""
        infos = [self.weight(name) for name in names]
        for info, size in zip(infos, sizes, strict=True):
            if info.shape != (size, columns):
                raise UserError(
                    f"tensor {info.name} has the shape {info.shape}, not {(size, columns)}"
                )
        return infos
