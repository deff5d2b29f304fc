"""The graph of ONNX Runtime's own operators: for machines without the kernels, for GPUs and for phones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.architectures.common import Config
from edgespec.export.decoder import Decoder
from edgespec.export.graph import MICROSOFT, Graph
from edgespec.export.quants import FORMATS, SUM_BLOCK, Format, dequantize, pack
from edgespec.export.source import Source
from edgespec.models.gguf import TensorInfo
from edgespec.progress import Progress

_PART_WEIGHTS = 1 << 24
"""Weights unpacked at a time, so that building needs little memory."""
_FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": np.float32}
"""Types that are multiplied as they are, and how the graph stores them (NumPy has no BF16)."""


class NBitsDecoder(Decoder):
    """A decoder of ``MatMulNBits`` and ``GroupQueryAttention``.

    Inputs, besides those of ``Decoder``:
    ``attention_rows`` int64 ``[a]``, a ≥ n, the rows that attention sees, the n rows first (more of
    them make its kernel another one, see ``OnnxRuntime``); ``rows`` int64 ``[1]``, n;
    ``last_position`` int32 ``[1]`` and ``total_length`` int32 ``[]``, tokens in the cache after the
    pass, those a rows counted, less one and whole; ``position_ids`` int64 ``[1, a]``, what each row is
    rotated by; ``attention_bias`` float32 ``[1, 1, a, total_length]``, added to attention's scores of
    what causality and windows leave (0 for a chain; in a tree, rows that are no ancestors are hidden
    by it); and ``past_key_i``/``past_value_i`` float32
    ``[1, kv_heads, capacity, head_dim]``. Outputs: ``logits`` and the
    same caches, appended in place when bound to the same memory.
    """

    types = (*FORMATS, *_FLOATS)

    def __init__(self, source: Source, config: Config, graph: Graph, progress: Progress) -> None:
        super().__init__(source, config, graph, progress)
        self.done = 0
        self.total = sum(tensor.nbytes for tensor in source.tensors.values())
        if not self.has("output") and (tied := self.weight("token_embd")).type in FORMATS:
            self.total += tied.nbytes  # read twice
        self.sums: dict[str, str] = {}

    def build(self) -> None:
        super().build()
        self.progress("building", self.total, self.total)  # norms and the like were not counted

    def inputs(self) -> None:
        graph = self.graph
        graph.input("attention_rows", np.int64, ["a"])
        graph.input("rows", np.int64, [1])
        graph.input("last_position", np.int32, [1])
        graph.input("total_length", np.int32, [])
        graph.input("position_ids", np.int64, [1, "a"])
        graph.input("attention_bias", np.float32, [1, 1, "a", "t"])
        graph.constant("zero", np.array([0], np.int64))
        graph.constant("one", np.array([1], np.int64))

    def head(self, normed: str) -> str:
        return self.linear(normed, [self.head_name], [self.vocab_size], self.config.hidden)

    def estimated_bytes(self) -> int:
        tensors = dict(self.source.tensors)
        embedding = tensors.pop("token_embd.weight", None)
        built = self.table_bytes + sum(_built_bytes(tensor) for tensor in tensors.values())
        if embedding:
            built += math.prod(embedding.shape) * _table_dtype(embedding).itemsize
            if embedding.type in FORMATS and not self.has("output"):
                built += _built_bytes(embedding)
        return built

    def embed(self, tokens: str) -> str:
        """Rows of the embedding; only the rows that are used become resident."""
        name, config = "token_embd.weight", self.config
        info = self.weight("token_embd")
        if info.shape[1:] != (config.hidden,):
            raise UserError(f"tensor {name} has the shape {info.shape}, not (…, {config.hidden})")
        dtype = _table_dtype(info)
        table = self.stream("embedding", dtype, [name])
        [value] = self.graph.node("Gather", [table, tokens])
        if dtype != np.float32:
            [value] = self.graph.node("Cast", [value], to=1)
        return self.scaled(value)

    def stream(self, name: str, dtype: npt.DTypeLike, tensors: Sequence[str]) -> str:
        """Add the weights of tensors, one after the other, as a constant ``[rows, columns]``."""
        infos = [self.source.tensors[tensor] for tensor in tensors]
        kind, columns = infos[0].type, infos[0].shape[-1]
        return self.graph.stream(
            [(name, dtype, [sum(info.rows for info in infos), columns])],
            ((dequantize(part, kind, columns).astype(dtype),) for part in self.parts(tensors)),
        )[0]

    def norm(self, value: str, name: str, length: int = 0) -> str:
        weight = self.vector(name + ".weight", length or self.config.hidden)
        gain = self.graph.constant(name, weight)
        return self.graph.node(
            "SimplifiedLayerNormalization", [value, gain], axis=-1, epsilon=self.config.norm_epsilon
        )[0]

    def add_norm(self, residual: str, delta: str, name: str) -> tuple[str, str]:
        if not delta:
            return self.norm(residual, name), residual
        gain = self.graph.constant(name, self.vector(name + ".weight", self.config.hidden))
        normed, _, _, total = self.graph.node(
            "SkipSimplifiedLayerNormalization", [residual, delta, gain],
            [f"{name}_normed", "", "", f"{name}_sum"], MICROSOFT, epsilon=self.config.norm_epsilon,
        )  # fmt: skip
        return normed, total

    def attention(self, value: str, layer: int) -> str:
        config, graph, name = self.config, self.graph, f"blk.{layer}."
        names, sizes = self.attention_matrices(layer)
        normalized = self.has(name + "attn_q_norm")
        width = config.heads * config.head_dim
        if len({self.weight(n).type for n in names}) == 1:
            query, key, projected = self.linear(value, names, sizes, config.hidden), "", ""
            if normalized:
                shared = config.kv_heads * config.head_dim
                query, key, projected = self.split(query, [width, shared, shared])
        else:
            query, key, projected = (
                self.linear(value, [n], [size], config.hidden)
                for n, size in zip(names, sizes, strict=True)
            )
        if normalized:
            query = self.head_norm(query, name + "attn_q_norm")
            key = self.head_norm(key, name + "attn_k_norm")
        query, key, projected = (
            part and graph.node("Gather", [part, "attention_rows"], axis=1)[0]
            for part in (query, key, projected)
        )
        local = config.is_local(layer)
        shape: list[int | str] = [1, config.kv_heads, "capacity", config.head_dim]
        past = [graph.input(f"past_{kind}_{layer}", np.float32, shape) for kind in ("key", "value")]
        present = [f"present_{kind}_{layer}" for kind in ("key", "value")]
        for output in present:
            graph.output(output, np.float32, shape)
        prefix = "local_" if local and config.rope_local_base else ""
        rotated = config.is_rotated(layer)
        rotary = [prefix + "cos", prefix + "sin", "position_ids"] if rotated else ["", "", ""]
        attended = graph.node(
            "GroupQueryAttention",
            [query, key, projected, *past, "last_position", "total_length", *rotary, "attention_bias"],
            [f"{name}attended", *present], MICROSOFT,
            num_heads=config.heads, kv_num_heads=config.kv_heads, scale=config.attention_scale,
            do_rotary=int(rotated), rotary_interleaved=int(config.rope_interleaved),
            local_window_size=config.window if local else -1,
        )[0]  # fmt: skip
        [attended] = graph.node("Slice", [attended, "zero", "rows", "one"])
        return self.linear(attended, [name + "attn_output"], [config.hidden], width)

    def head_norm(self, value: str, name: str) -> str:
        """RMSNorm of each head (Qwen3, Gemma 3)."""
        heads = self.graph.constant(
            name + "_heads", np.array([0, 0, -1, self.config.head_dim], np.int64)
        )
        flat = self.graph.constant(name + "_flat", np.array([0, 0, -1], np.int64))
        [split] = self.graph.node("Reshape", [value, heads])
        normed = self.norm(split, name, self.config.head_dim)
        return self.graph.node("Reshape", [normed, flat])[0]

    def feed_forward(self, value: str, layer: int) -> str:
        graph, hidden = self.graph, self.config.hidden
        names, sizes, width = self.gate_matrices(layer)
        if len({self.weight(n).type for n in names}) == 1:
            gate, up = self.split(self.linear(value, names, sizes, hidden), [width] * 2)
        else:
            gate, up = (self.linear(value, [n], [width], hidden) for n in names)
        if self.config.activation == "silu":
            [gate] = graph.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)
        else:
            [gate] = graph.node("FastGelu", [gate], domain=MICROSOFT)
        [product] = graph.node("Mul", [gate, up])
        return self.linear(product, [f"blk.{layer}.ffn_down"], [hidden], width)

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        lengths = self.graph.constant(f"{value}_sizes", np.array(sizes, np.int64))
        return self.graph.node("Split", [value, lengths], len(sizes), axis=-1)

    def linear(self, value: str, names: Sequence[str], sizes: Sequence[int], columns: int) -> str:
        """The product with one weight, or with several of one type at once (their rows follow).

        ``sizes`` are the rows that each must have, ``columns`` the length of the input.
        """
        infos = self.checked(names, sizes, columns)
        kind, rows, tensors = infos[0].type, sum(sizes), [info.name for info in infos]
        bias = self.bias(names, sizes)
        if kind in FORMATS:
            return self.quantized(value, names[0], tensors, rows, columns, FORMATS[kind], bias)
        return self.dense(value, names[0], tensors, rows, columns, bias)

    def dense(
        self, value: str, name: str, tensors: Sequence[str], rows: int, columns: int, bias: str
    ) -> str:
        dtype = _FLOATS[self.source.tensors[tensors[0]].type]
        if tensors[0] == "token_embd.weight":  # tied: it is there
            weight = "embedding"
        else:
            weight = self.stream(name, dtype, tensors)
        if dtype != np.float32:  # ONNX Runtime casts constants once, at load
            [weight] = self.graph.node("Cast", [weight], to=1)
        self.weight_bytes += 4 * rows * columns
        [product] = self.graph.node("FusedMatMul", [value, weight], domain=MICROSOFT, transB=1)
        return self.graph.node("Add", [product, bias])[0] if bias else product

    def quantized(
        self, value: str, name: str, tensors: Sequence[str], rows: int, columns: int,
        format: Format, bias: str,
    ) -> str:  # fmt: skip
        if format.has_minimums:
            value = self.with_block_sums(value, columns)
            columns += columns // SUM_BLOCK
        blocks = -(-columns // format.block)
        names = [name, name + ".scales"] + [name + ".zero_points"] * format.has_zero_points
        shapes = [
            (rows, blocks, format.block * format.bits // 8),
            (rows, blocks),
            (rows, -(-blocks * format.bits // 8)),
        ]
        dtypes = (np.uint8, np.float32, np.uint8)
        packed = (pack(part, format) for part in self.parts(tensors))
        constants = self.graph.stream(
            list(zip(names, dtypes, shapes, strict=False)),
            (
                (p.weight, p.scales)
                if p.zero_points is None
                else (p.weight, p.scales, p.zero_points)
                for p in packed
            ),
        )
        self.weight_bytes += sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for _, dtype, shape in zip(names, dtypes, shapes, strict=False)
        )
        constants += [""] * (3 - len(constants))
        inputs = [value, *constants] + (["", bias] if bias else [])
        return self.graph.node(
            "MatMulNBits", inputs, 1, MICROSOFT,
            K=columns, N=rows, bits=format.bits, block_size=format.block, accuracy_level=4,
        )[0]  # fmt: skip

    def with_block_sums(self, value: str, columns: int) -> str:
        """The input, followed by the sums of its blocks (made once for all products that want it)."""
        if value not in self.sums:
            shape = np.array([0, 0, columns // SUM_BLOCK, SUM_BLOCK], np.int64)
            split = self.graph.constant(f"sum_blocks_of_{columns}", shape)
            axis = self.graph.constant("last_axis", np.array([-1], np.int64))
            [blocks] = self.graph.node("Reshape", [value, split])
            [sums] = self.graph.node("ReduceSum", [blocks, axis], keepdims=0)
            [self.sums[value]] = self.graph.node("Concat", [value, sums], axis=-1)
        return self.sums[value]

    def parts(self, tensors: Sequence[str]) -> Iterator[np.ndarray]:
        """The stored rows of tensors, some at a time, reporting progress."""
        for name in tensors:
            raw, info = self.source.tensor(name), self.source.tensors[name]
            step = max(1, _PART_WEIGHTS // info.shape[-1])
            for start in range(0, info.rows, step):
                part = raw[start : start + step]
                yield part
                self.done += part.nbytes
                self.progress("building", min(self.done, self.total), self.total)


def _table_dtype(embedding: TensorInfo) -> np.dtype[Any]:
    """The format in which the graph stores an embedding: float16 for block formats, else as in products."""
    return np.dtype(_FLOATS.get(embedding.type, np.float16))


def _built_bytes(tensor: TensorInfo) -> int:
    """Bytes of a tensor in the built model."""
    weights = math.prod(tensor.shape)
    if tensor.type not in FORMATS:
        return weights * np.dtype(_FLOATS.get(tensor.type, np.float32)).itemsize
    format = FORMATS[tensor.type]
    return int(
        weights * (format.bits / 8 + 5 / format.block) * (1.05 if format.has_minimums else 1)
    )
