"""A source as a folder that the onnx runtime loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.decoder import Decoder
from edgespec.export.graph import Graph
from edgespec.export.source import Source, name_of
from edgespec.models.onnx_folder import write_manifest
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.progress import Progress, silent

_DISK_MARGIN = 64 << 20


def write_onnx(source: Source, folder: Path, progress: Progress = silent) -> None:
    """Write graph, weights and ``edgespec.json`` into the empty ``folder``.

    The same source gives the same bytes. Raises ``UserError`` where it cannot be built or does not
    fit on the disk.
    """
    config = read_config(source.metadata)
    with Graph(folder) as graph:
        decoder = Decoder(source, config, graph, progress)
        need, free = decoder.estimated_bytes() + _DISK_MARGIN, shutil.disk_usage(folder).free
        if need > free:
            raise UserError(
                f"building {source.path.name} needs {need >> 20} MiB in {folder.parent} and "
                f"{free >> 20} MiB are free; make room or move it with EDGESPEC_HOME"
            )
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
    write_manifest(folder, manifest)
