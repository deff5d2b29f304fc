"""The graph of ``edgespec.kernels``' operators over packed weights: the form for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec import kernels
from edgespec.export.decoder import Decoder
from edgespec.models.onnx_folder import MODEL_FILE


class KernelDecoder(Decoder):
    """A decoder of ``GgufMatMul`` and ``Attention``.

    Inputs, besides those of ``Decoder``: ``parents`` int32 ``[n]``, the row before each (-1: the
    cache's last); ``length`` int32 ``[1]``, tokens in the cache; ``keys`` float16 ``[layers, kv_heads,
    capacity / 16, head_dim, 16]`` and ``values`` float16 ``[layers, kv_heads, ⌈head_dim / 16⌉,
    capacity, 16]``, to which the pass adds its rows in place. Outputs: ``logits``, and ``features``
    float32 ``[1, m, hidden]``, the rows after the final norm.
    """

    types = kernels.TYPES

    def inputs(self) -> None:
        config, graph = self.config, self.graph
        layers, heads, dim = config.layers, config.kv_heads, config.head_dim
        graph.input("parents", np.int32, ["n"])
        graph.input("length", np.int32, [1])
        graph.input("keys", np.float16, [layers, heads, "capacity_16", dim, 16])
        graph.input("values", np.float16, [layers, heads, -(-dim // 16), "capacity", 16])
        self.matrices: list[str] = []
        """The tensors that are packed."""

    def estimated_bytes(self) -> int:
        tensors = self.source.tensors.values()
        return self.table_bytes + sum(
            kernels.Shape.of(tensor).packed_bytes if len(tensor.shape) == 2 else tensor.nbytes
            for tensor in tensors
            if tensor.type in self.types or len(tensor.shape) < 2
        )

    def embed(self, tokens: str) -> str:
        info = self.checked(["token_embd"], [self.weight("token_embd").rows], self.config.hidden)[0]
        weight = self.matrix(info.name)
        node = kernels.gather_node(tokens, weight, kernels.Shape.of(info), "embedding_rows")
        return self.scaled(self.graph.append(node))

    def matrix(self, name: str) -> str:
        """A tensor as the packed file will have it."""
        if name not in self.matrices:
            self.matrices.append(name)
            info = self.source.tensors[name]
            self.graph.constants[name] = kernels.placeholder(
                name, kernels.Shape.of(info), MODEL_FILE
            )
        return name

    def linear(
        self,
        value: str,
        names: Sequence[str],
        sizes: Sequence[int],
        columns: int,
        *,
        biased: bool = True,
    ) -> str:
        """The products with several matrices, beside each other; ``biased``: with their biases."""
        infos = self.checked(names, sizes, columns)
        shapes = [(self.matrix(info.name), kernels.Shape.of(info)) for info in infos]
        self.weight_bytes += sum(shape.packed_bytes for _, shape in shapes)
        product = self.graph.append(kernels.matmul_node(value, shapes, f"{names[0]}_product"))
        bias = self.bias(names, sizes) if biased else ""
        return self.graph.node("Add", [product, bias])[0] if bias else product

    def norm(self, value: str, name: str) -> str:
        return self.graph.node(
            "RmsNorm", [value, self.gain(name, self.config.hidden)], domain=kernels.DOMAIN,
            epsilon=self.config.norm_epsilon,
        )[0]  # fmt: skip

    def add_norm(self, residual: str, delta: str, name: str) -> tuple[str, str]:
        if not delta:
            return self.norm(residual, name), residual
        outputs = ["features", f"{name}_sum"] if name == "output_norm" else 2
        normed, total = self.graph.node(
            "AddRmsNorm", [residual, delta, self.gain(name, self.config.hidden)], outputs,
            kernels.DOMAIN, epsilon=self.config.norm_epsilon,
        )  # fmt: skip
        return normed, total

    def gain(self, name: str, length: int) -> str:
        return self.graph.constant(name, self.vector(name + ".weight", length))

    def attention(self, value: str, layer: int) -> str:
        config, name = self.config, f"blk.{layer}."
        names, sizes = self.attention_matrices(layer)
        product = self.linear(value, names, sizes, config.hidden, biased=False)  # attention adds it
        local = config.is_local(layer)
        prefix = "local_" if local and config.rope_local_base else ""
        inputs = [product, "keys", "values", "parents", "length", prefix + "cos", prefix + "sin"]
        if bias := self.bias(names, sizes):
            inputs.append(bias)
        if normed := self.has(name + "attn_q_norm"):
            inputs += [self.gain(name + f"attn_{letter}_norm", config.head_dim) for letter in "qk"]
        [attended] = self.graph.node(
            "Attention", inputs, domain=kernels.DOMAIN,
            layer=layer, heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim,
            rope_dims=config.rope_dims * config.is_rotated(layer),
            interleaved=int(config.rope_interleaved), window=config.window if local else 0,
            biased=int(bool(bias)), normed=int(normed),
            scale=config.attention_scale, epsilon=config.norm_epsilon,
        )  # fmt: skip
        width = config.heads * config.head_dim
        return self.linear(attended, [name + "attn_output"], [config.hidden], width)

    def feed_forward(self, value: str, layer: int) -> str:
        hidden = self.config.hidden
        names, sizes, width = self.gate_matrices(layer)
        product = self.linear(value, names, sizes, hidden)
        gelu = int(self.config.activation != "silu")
        [gated] = self.graph.node("GatedUnit", [product], domain=kernels.DOMAIN, gelu=gelu)
        return self.linear(gated, [f"blk.{layer}.ffn_down"], [hidden], width)

    def head(self, normed: str) -> str:
        shape = [self.config.hidden]
        self.graph.output("features", np.float32, [1, "m", *shape])
        return self.linear(normed, [self.head_name], [self.vocab_size], self.config.hidden)
