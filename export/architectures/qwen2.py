"""Qwen2 and Qwen2.5: biases on query, key and value (found in the file)."""

from edgespec.export.architectures.common import Config, Metadata, common


def config(metadata: Metadata) -> Config:
    return common(metadata)
