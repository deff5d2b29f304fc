"""Builds tiny models with random weights as GGUF files: every architecture and block format that we
read, in a fraction of a second and without a download.

The weights are scaled so that hidden states stay near unit size, attention is neither uniform nor
one-hot, and logits have a standard deviation of about 3; so a wrong rotation, mask, norm or scale
shows in the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

Array = npt.NDArray[Any]

# A tokenizer's merges in order of rank, and the tokens that stand for no text.
MERGES = """Ġ t|h e|Ġ a|i n|r e|o n|e r|Ġt he|a t|Ġ s|e n|o r|Ġ w|i s|Ġ o|n d|Ġ b|Ġ f|e s|e d|Ġo f
in g|Ġa nd|Ġ Ġ|ĠĠ ĠĠ|Ġ l|Ġ c|l l|d e|f or|Ġ in|r o|Ġt o|l o|he l|hel lo|Ġw or|l d|Ġwor ld"""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A model's shape. ``types`` overrides the block format by a tensor's short name (``attn_v``)."""

    architecture: str
    layers: int = 2
    hidden: int = 256
    feed_forward: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    tied: bool = False
    context: int = 512
    window: int = 16
    """Tokens that a sliding layer of gemma3 sees; every sixth layer sees everything."""
    window_everywhere: int = 0
    """Tokens that every layer of llama (as Mistral) or phi3 sees; 0: all. As the exporter writes it."""
    rope_base: float = 10_000.0
    rope_dims: int = 0
    """Dimensions of a head that are rotated, where not all are (phi3)."""
    rope_factors: bool = False
    """Per-frequency divisors, as Llama 3.1 and later have; and Phi-3, with a factor for the result."""
    rope_scaling: float = 1.0
    """Linear position scaling, as the larger Gemma 3 have (on layers that see everything)."""
    pre_tokenizer: str = "smollm"
    types: dict[str, str] = field(default_factory=dict)


TINY = {
    "llama": Tiny("llama"),
    "qwen2": Tiny("qwen2", tied=True, rope_base=1e6, pre_tokenizer="qwen2"),
    "qwen3": Tiny("qwen3", head_dim=128, rope_base=1e6, pre_tokenizer="qwen2"),
    "smollm3": Tiny("smollm3", layers=5, tied=True),  # the fourth is not rotated
    "phi3": Tiny("phi3"),
    "gemma3": Tiny(
        "gemma3",
        layers=7,
        kv_heads=1,
        head_dim=256,
        tied=True,
        rope_base=1e6,
        pre_tokenizer="gpt-2",
    ),
}


def tiny_gguf(
    path: str | Path,
    architecture: str = "llama",
    quant: str = "F32",
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a tiny model to ``path`` and return it.

    ``quant`` is the type of every matrix: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, or Q4_K, Q5_K,
    Q6_K (random blocks); norms and biases are F32. ``overrides`` are fields of ``Tiny``.
    """
    tiny = replace(TINY[architecture], **overrides)
    writer = gguf.GGUFWriter(path, architecture)
    _write_shape(writer, tiny)
    vocab_size = _write_tokenizer(writer, tiny)
    random = np.random.default_rng(seed)
    for name, shape, mean, deviation in _tensors(tiny, vocab_size):
        if len(shape) == 1:
            vector = mean + deviation * random.standard_normal(shape)
            writer.add_tensor(name, vector.astype(np.float32))
        else:
            short = name.removesuffix(".weight").split(".")[-1]
            kind = Type[tiny.types.get(short, quant)]
            data = random_matrix(random, shape, deviation, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def random_matrix(
    random: np.random.Generator, shape: tuple[int, ...], deviation: float, kind: Type
) -> Array:
    """A matrix of zero mean and the given standard deviation, stored as ``kind``."""
    if kind in RANDOM_BLOCKS:
        rows, columns = shape
        blocks = RANDOM_BLOCKS[kind](random, rows * columns // 256, deviation)
        return blocks.reshape(rows, -1)
    values = (deviation * random.standard_normal(shape)).astype(np.float32)
    return np.asarray(gguf.quants.quantize(values, kind))


def _write_shape(writer: gguf.GGUFWriter, tiny: Tiny) -> None:
    name = tiny.architecture.replace(
        "phi3", "phi 3"
    )  # llama.cpp expects certain tokens of a "phi3"
    writer.add_name(f"tiny {name}")
    writer.add_context_length(tiny.context)
    writer.add_embedding_length(tiny.hidden)
    writer.add_block_count(tiny.layers)
    writer.add_feed_forward_length(tiny.feed_forward)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(tiny.rope_base)
    if tiny.architecture in ("llama", "smollm3", "phi3"):
        writer.add_rope_dimension_count(tiny.rope_dims or tiny.head_dim)
    if tiny.head_dim * tiny.heads != tiny.hidden:
        writer.add_key_length(tiny.head_dim)
        writer.add_value_length(tiny.head_dim)
    if tiny.architecture == "gemma3":
        writer.add_sliding_window(tiny.window)
    if tiny.window_everywhere:
        writer.add_sliding_window(tiny.window_everywhere)  # which llama.cpp ignores
        writer.add_uint32("edgespec.sliding_window", tiny.window_everywhere)
    if tiny.architecture == "phi3" and tiny.rope_factors:
        writer.add_rope_scaling_orig_ctx_len(tiny.context)
        writer.add_rope_scaling_attn_factors(1.2)
    if tiny.rope_scaling != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(tiny.rope_scaling)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + hidden.index(byte)) for byte in range(256)]


def _write_tokenizer(writer: gguf.GGUFWriter, tiny: Tiny) -> int:
    """A byte-level BPE of 256 bytes, a few merges and the special tokens. Returns its size."""
    merges = MERGES.replace("\n", "|").split("|")
    tokens = [*_byte_characters(), *(merge.replace(" ", "") for merge in merges)]
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(SPECIAL)
    first_special = len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tiny.pre_tokenizer)
    writer.add_token_list([*tokens, *SPECIAL])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(first_special)
    writer.add_eos_token_id(first_special + 2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(types)


def _tensors(tiny: Tiny, vocab_size: int) -> list[tuple[str, tuple[int, ...], float, float]]:
    """Name, shape, mean and standard deviation of every tensor."""
    gemma, phi = tiny.architecture == "gemma3", tiny.architecture == "phi3"
    queries, keys = tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    # Small next to what the layers add, or a tied model would only repeat its input. Gemma
    # multiplies its embeddings by the root of the hidden size.
    embedding = (0.5 if gemma else 1.0) / tiny.hidden**0.5
    head = embedding if tiny.tied else tiny.hidden**-0.5
    logit_scale = 3.0 / (head * tiny.hidden**0.5)
    found: list[tuple[str, tuple[int, ...], float, float]] = []

    def norm(name: str, size: int, mean: float = 1.0) -> None:
        found.append((name + ".weight", (size,), mean, 0.2 * mean))

    def matrix(name: str, rows: int, columns: int, deviation: float) -> None:
        found.append((name + ".weight", (rows, columns), 0.0, deviation))

    matrix("token_embd", vocab_size, tiny.hidden, embedding)
    norm("output_norm", tiny.hidden, logit_scale)
    if not tiny.tied:
        matrix("output", vocab_size, tiny.hidden, head)
    if tiny.rope_factors:
        phi_names = ("rope_factors_long", "rope_factors_short")
        size = (tiny.rope_dims or tiny.head_dim) // 2
        for name in phi_names if phi else ("rope_freqs",):
            found.append((name + ".weight", (size,), 4.0, 1.0))
    for layer in range(tiny.layers):
        block = f"blk.{layer}."
        norm(block + "attn_norm", tiny.hidden)
        separate = (("attn_q", queries, 2.0), ("attn_k", keys, 1.0), ("attn_v", keys, 2.0))
        for name, rows, gain in (("attn_qkv", queries + 2 * keys, 1.6),) if phi else separate:
            matrix(block + name, rows, tiny.hidden, gain * tiny.hidden**-0.5)
            if tiny.architecture == "qwen2":
                found.append((block + name + ".bias", (rows,), 0.0, 0.5))
        if tiny.architecture in ("qwen3", "gemma3"):
            norm(block + "attn_q_norm", tiny.head_dim, 1.5)
            norm(block + "attn_k_norm", tiny.head_dim)
        matrix(block + "attn_output", tiny.hidden, queries, queries**-0.5)
        norm(block + "ffn_norm", tiny.hidden)
        if not phi:
            matrix(block + "ffn_gate", tiny.feed_forward, tiny.hidden, tiny.hidden**-0.5)
        matrix(block + "ffn_up", tiny.feed_forward * (1 + phi), tiny.hidden, tiny.hidden**-0.5)
        matrix(block + "ffn_down", tiny.hidden, tiny.feed_forward, 2 * tiny.feed_forward**-0.5)
        if gemma:
            norm(block + "post_attention_norm", tiny.hidden)
            norm(block + "post_ffw_norm", tiny.hidden)
    return found


# Random blocks of 256 weights. Their codes, and the scales of their parts, are drawn at random; the
# float16 factors of a block follow from the standard deviation asked for.


def _half_bytes(value: float, blocks: int) -> Array:
    return np.full((blocks, 1), value, np.float16).view(np.uint8)


def _random_bytes(random: np.random.Generator, blocks: int, size: int) -> Array:
    return random.integers(0, 256, (blocks, size), np.uint8)


def _packed_scales(random: np.random.Generator, blocks: int) -> Array:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes, as ggml's get_scale_min_k4 reads them."""
    scales = random.integers(32, 62, (blocks, 8), np.uint8)
    minima = scales + random.integers(-2, 3, (blocks, 8)).astype(np.int8).view(np.uint8)
    packed = np.empty((blocks, 12), np.uint8)
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    packed[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    packed[:, 8:12] = scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4
    return packed


def _with_minima(random: np.random.Generator, blocks: int, deviation: float, bits: int) -> Array:
    """Q4_K (4 bits) and Q5_K (5 bits): factor · scale · code - minimum factor · minimum."""
    codes = 2**bits
    factor = deviation / (47 * codes / 12**0.5)  # scales average 47
    parts = [
        _half_bytes(factor, blocks),
        _half_bytes(factor * (codes - 1) / 2, blocks),  # centres the weights on zero
        _packed_scales(random, blocks),
        _random_bytes(random, blocks, 256 * bits // 8),
    ]
    return np.concatenate(parts, axis=1)


def _q4_k(random: np.random.Generator, blocks: int, deviation: float) -> Array:
    return _with_minima(random, blocks, deviation, 4)


def _q5_k(random: np.random.Generator, blocks: int, deviation: float) -> Array:
    return _with_minima(random, blocks, deviation, 5)


def _q6_k(random: np.random.Generator, blocks: int, deviation: float) -> Array:
    scales = random.integers(32, 128, (blocks, 16), np.int8) * random.choice(
        np.array([-1, 1], np.int8), (blocks, 16)
    )
    parts = [
        _random_bytes(random, blocks, 192),
        scales.view(np.uint8),
        _half_bytes(deviation / (80 * 64 / 12**0.5), blocks),  # scales average 80
    ]
    return np.concatenate(parts, axis=1)


RANDOM_BLOCKS = {Type.Q4_K: _q4_k, Type.Q5_K: _q5_k, Type.Q6_K: _q6_k}
