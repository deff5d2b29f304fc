"""Qwen3: query and key are normalized per head (found in the file)."""

from edgespec.export.architectures.common import Config, Metadata, common


def config(metadata: Metadata) -> Config:
    return common(metadata)
