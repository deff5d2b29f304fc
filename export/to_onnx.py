"""A source as a folder that the onnx runtime loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgespec import kernels
from edgespec.errors import UserError
from edgespec.export import accounting
from edgespec.export.architectures import ARCHITECTURES, read_config
from edgespec.export.architectures.common import Config
from edgespec.export.decoder import Decoder
from edgespec.export.graph import Graph
from edgespec.export.kernel_decoder import KernelDecoder
from edgespec.export.nbits_decoder import NBitsDecoder
from edgespec.export.source import Source, name_of
from edgespec.models.onnx_folder import PACKED_FILE, write_manifest
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.progress import Progress, silent
from edgespec.units import format_size

_DISK_MARGIN = 64 << 20


def write_onnx(
    source: Source, folder: Path, progress: Progress = silent, *, packed: bool = False
) -> None:
    """Write graph, weights and ``edgespec.json`` into the empty ``folder``.

    ``packed``: for the kernels' operators (``KernelDecoder``); else for ONNX Runtime's own
    (``NBitsDecoder``). The same source gives the same bytes. Raises ``UserError`` where it cannot be
    built, where the kernels are not here, or where it does not fit on the disk.
    """
    if packed and (reason := kernels.why_not()):
        raise UserError(f"no kernels: {reason}; install edgespec again, or use --format onnx")
    config = _checked_config(source)
    with Graph(folder) as graph:
        kind = KernelDecoder if packed else NBitsDecoder
        decoder = kind(source, config, graph, progress)
        _check_space(source, decoder, folder)
        decoder.build()
        graph.save(config.architecture)
    manifest = {
        "name": name_of(source.path),
        "architecture": config.architecture,
        "vocab_size": decoder.vocab_size,
        "token_ids": source.metadata.get(TOKEN_IDS),
        "layers": config.layers,
        "context": config.context,
        "window": config.window,
        "weight_bytes": decoder.weight_bytes,
        "constants": graph.external,
    }
    if isinstance(decoder, KernelDecoder):
        path = folder / PACKED_FILE
        manifest["packed"] = kernels.pack(source, path, decoder.matrices, progress)
    write_manifest(folder, manifest)


def _checked_config(source: Source) -> Config:
    """Raises ``UserError`` where a graph would not compute all that is in a GGUF file. (A folder's source
    checks its own names, which are Hugging Face's.)"""
    if source.path.is_dir() or source.metadata.get("general.architecture") not in ARCHITECTURES:
        return read_config(source.metadata)
    if reason := accounting.unsupported_feature(source):
        raise UserError(f"{source.path} {reason}; use --runtime llama-cpp")
    config = read_config(source.metadata)
    if missing := accounting.missing_tensor(source):
        raise UserError(f"{source.path} has no tensor {missing}; is it a complete language model?")
    if reason := accounting.unsupported(source):
        raise UserError(f"{source.path} {reason}; use --runtime llama-cpp")
    return config


def _check_space(source: Source, decoder: Decoder, folder: Path) -> None:
    need, free = decoder.estimated_bytes() + _DISK_MARGIN, shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"building {source.path.name} needs {format_size(need)} in {folder.parent} and "
            f"{format_size(free)} is free; make room or move it with EDGESPEC_HOME"
        )
