"""Gemma 3: scaled embeddings, norms before and after, five local layers to a global one."""

from edgespec.export.architectures.common import Config, Metadata, common, count, read


def config(metadata: Metadata) -> Config:
    return common(
        metadata,
        activation="gelu",
        embedding_scale=float(read(metadata, "embedding_length")) ** 0.5,
        window=count(metadata, "attention.sliding_window"),
        global_every=count(metadata, "attention.sliding_window_pattern", 6),
        rope_local_base=read(metadata, "rope.freq_base_swa", 10000.0),
    )
