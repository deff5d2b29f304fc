"""What a file is that is no whole GGUF model, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgespec.errors import UserError

_MAGICS = (
    (b"lmgg", "it is a GGML file of before August 2023; download the model as GGUF"),
    (b"tjgg", "it is a GGML file (GGJT) of before August 2023; download the model as GGUF"),
    (b"fmgg", "it is a GGML file (GGMF) of before August 2023; download the model as GGUF"),
    (b"algg", "it is an adapter (LoRA) of before August 2023, not a model; give a model"),
    (b"PK\3\4", "it is a zip archive or a PyTorch file; unpack it, or download the model as GGUF"),
    (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull`, or download it"),
    (b"<", "it is a web page, not the file behind it; download it again"),
    (b"Entry not found", "it is the error page of a download; check its address"),
    (b"FUGG", "it is a big-endian file; download the little-endian one"),
)
_SAFETENSORS = "it is a safetensors file; give the folder that has it and its config.json"
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_IMATRIX = "is an importance matrix (imatrix) for quantizing, not a model; give the model itself"
_ADAPTER = (
    "is an adapter (LoRA), not a model; merge it into its model with llama.cpp's llama-export-lora, and "
    "give the file that this writes"
)
_PROJECTOR = (
    "is a projector of pictures or sound (mmproj), not a model; give the language model beside it"
)
_TYPES = {
    "adapter": _ADAPTER,
    "mmproj": _PROJECTOR,
    "projector": _PROJECTOR,
    "clip-vision": _PROJECTOR,
    "imatrix": _IMATRIX,
    "control_vector": "is a control vector, not a model; give the model itself",
    "vocab": "has a vocabulary without a model; give the model itself",
}
"""By ``general.type``."""
_ENCODER = "is an encoder ({}), which makes embeddings and no text; give a language model"
_ENCODERS = (
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
    "eurobert", "gemma-embedding", "llama-embed", "t5encoder",
)  # fmt: skip
_ARCHITECTURES = {
    "clip": _PROJECTOR,
    "controlvector": _TYPES["control_vector"],
    "wavtokenizer-dec": "is a decoder of sound (wavtokenizer-dec), not a language model; give one",
    "eagle3": "is a draft head (eagle3), which does not run alone; give the model it drafts for",
    "dflash": "is a draft head (dflash), which does not run alone; give the model it drafts for",
    "gemma4-assistant": "is a draft head (gemma4-assistant), which does not run alone; give its model",
    **dict.fromkeys(
        ("flux", "sd1", "sdxl", "sd3", "lumina2", "wan", "hidream", "qwen_image", "ltxv", "aura"),
        "is a model of pictures or films, not a language model; give one",
    ),
    **{name: _ENCODER.format(name) for name in _ENCODERS},
}
"""By ``general.architecture``."""


def why_no_magic(start: bytes) -> str:
    """What a file is that does not begin with GGUF, from its first bytes."""
    if start[8:9] == b"{":
        return _SAFETENSORS
    known = (what for magic, what in _MAGICS if start.lstrip().startswith(magic))
    return next(known, "download it again")


def why_no_version(version: int) -> str:
    """Why a version of the format is not read, to follow the file's name."""
    if version & 0xFFFF == 0 and version:
        return (
            f"is a big-endian GGUF file (its version reads {version}), for other processors; download the "
            "little-endian file, or convert it with gguf-convert-endian"
        )
    if version == 1:
        return "is a GGUF file of version 1, of August 2023, which is no longer read; download a newer one"
    return f"is a GGUF file of version {version}, and edgespec reads 2 and 3; upgrade edgespec"


def refuse_no_model(path: Path, metadata: Mapping[str, Any], tensors: int) -> None:
    """Raise ``UserError`` where a whole GGUF file is no language model; it says what the file is."""
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    what = _TYPES.get(str(kind)) or _ARCHITECTURES.get(str(architecture))
    if any(key.startswith("imatrix.") for key in metadata):
        what = _IMATRIX
    elif any(key.startswith("adapter.") for key in metadata):
        what = _ADAPTER
    elif not tensors and not what:
        what = _TYPES["vocab"]
    if what:
        raise UserError(f"{path} {what}")


def shard_paths(path: Path) -> list[Path]:
    """All files of a split model, by the name of its first; ``path`` alone for any other name."""
    match = _SPLIT.fullmatch(path.name)
    if not match or int(match["number"]) != 1:
        return [path]
    count = int(match["count"])
    names = (f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(count))
    return [path.with_name(name) for name in names]


def shards(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """The files beside ``path`` that have the rest of its tensors.

    Raises ``UserError`` where ``path`` is not the first, or not named as llama.cpp expects, or one is absent.
    """
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if not isinstance(count, int) or count < 2:
        return []
    match = _SPLIT.fullmatch(path.name)
    if number != 0:
        first = f"{match['stem']}-00001-of-{match['count']}.gguf" if match else "the first file"
        raise UserError(
            f"{path} is part {str(number + 1)[:9]} of a model split into {count} files; give {first}"
        )
    if not match or int(match["number"]) != 1 or int(match["count"]) != count:
        raise UserError(
            f"{path} is the first of {count} files, whose names must end in -00001-of-{count:05}.gguf and "
            "so on; rename them"
        )
    rest = shard_paths(path)[1:]
    for file in rest:
        if not file.is_file():
            raise UserError(
                f"{path} is the first of {count} files and {file.name} is not beside it; download it too"
            )
    return rest
