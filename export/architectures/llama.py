"""Llama, SmolLM, Mistral: rotary pairs are neighbours, as GGUF stores their query and key rows."""

from edgespec.export.architectures.common import Config, Metadata, common


def config(metadata: Metadata) -> Config:
    return common(metadata, rope_interleaved=True)
