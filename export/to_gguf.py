"""A source as a GGUF file, for llama.cpp; quantized by llama.cpp's own quantizer if asked."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.source import Source
from edgespec.files import move_into_place
from edgespec.models.gguf import BLOCK_FORMATS, TensorInfo
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent

QUANTIZATIONS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
)
"""Types that llama.cpp quantizes to without an importance matrix."""

_DISK_MARGIN = 64 << 20
_TYPES = {name for name, _, _ in BLOCK_FORMATS.values()}
_FLOATS = ("F32", "F16", "BF16")


def write_gguf(
    source: Source, path: Path, progress: Progress = silent, *, quantize: str | None = None
) -> None:
    """Write a source as the GGUF file ``path``, which must not exist; its folder must.

    Where the source's metadata has no tokenizer, it comes from the files of ``source.path``.
    ``quantize`` is one of ``QUANTIZATIONS``. The same source gives the same bytes. The file appears
    when it is whole. Raises ``UserError`` where it cannot be made or does not fit on the disk.
    """
    _refuse(source, path, quantize)
    source = with_tokenizer(source)
    try:
        _check_disk(source, path, quantize)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder) / "model.gguf"
            _write(source, partial, progress)
            if quantize is not None:
                partial = _quantized(partial, quantize.upper(), progress)
            move_into_place(partial, path)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot write {path}: {why}; check the folder and its disk") from error


def with_tokenizer(source: Source) -> Source:
    """``source``, its metadata with a tokenizer: its own, or that of the files in ``source.path``.

    Raises ``UserError`` where there is none, or one that is not the model's.
    """
    if "tokenizer.ggml.model" in source.metadata:
        return source
    embedding = source.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{source.path} has no tensor token_embd.weight; is it a language model?")
    tokenizer = Tokenizer.from_file(source.path).to_gguf(embedding.rows)
    return _Described(source, {**source.metadata, **tokenizer})


@dataclass(frozen=True)
class _Described:
    """A source with other metadata."""

    source: Source
    metadata: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self.source.tensors

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        return self.source.tensor(name)


def _refuse(source: Source, path: Path, quantize: str | None) -> None:
    """Raise ``UserError`` for errors that are known before any work."""
    if path.exists():
        raise UserError(f"{path} exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; create it first")
    for info in source.tensors.values():
        if info.type not in _TYPES:
            raise UserError(
                f"tensor {info.name} has the type {info.type}, which GGUF does not have; "
                "use --format onnx"
            )
        if quantize is not None and info.type not in _FLOATS:
            raise UserError(
                f"{source.path} is quantized already ({info.type}), and quantizing again costs "
                "quality; start from the full-precision weights"
            )
    if quantize is not None and quantize.upper() not in QUANTIZATIONS:
        raise UserError(
            f"llama.cpp does not quantize to {quantize!r}; take one of {', '.join(QUANTIZATIONS)}"
        )
    if quantize is not None and find_spec("llama_cpp") is None:
        raise UserError("quantizing for GGUF needs llama.cpp: pip install 'edgespec[llama]'")


def _check_disk(source: Source, path: Path, quantize: str | None) -> None:
    need = sum(info.nbytes for info in source.tensors.values()) + _DISK_MARGIN
    if quantize is not None:  # a second file, of at most 9 bits a weight
        need += sum(math.prod(info.shape) for info in source.tensors.values()) * 9 // 8
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise UserError(
            f"writing {path.name} needs {need >> 20} MiB in {path.parent} and {free >> 20} MiB are "
            "free; make room or choose another folder"
        )


def _write(source: Source, path: Path, progress: Progress) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    architecture = str(source.metadata.get("general.architecture", ""))
    writer = GGUFWriter(path, architecture)
    for key, value in source.metadata.items():
        # The writer has its own alignment, and no empty lists.
        if key not in ("general.architecture", "general.alignment") and value not in ([], ()):
            writer.add_key_value(key, *_typed(key, value))
    for name, info in source.tensors.items():
        kind = GGMLQuantizationType[info.type]
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), info.nbytes, raw_dtype=kind)
    total, done = sum(info.nbytes for info in source.tensors.values()), 0
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, info in source.tensors.items():
            progress("writing", done, total)
            writer.write_tensor_data(source.tensor(name))
            done += info.nbytes
    progress("writing", total, total)


def _typed(key: str, value: Any) -> tuple[Any, Any, Any]:
    """A value of the metadata as GGUF stores it, its type, and the type of its items."""
    from gguf import GGUFValueType as Type

    if isinstance(value, (list, tuple)):
        typed = [_typed(key, item) for item in value]
        kinds = {kind for _, kind, _ in typed}
        if kinds <= {Type.UINT32, Type.INT32} and max(value) < 1 << 31:
            kinds = {Type.INT32}
        if len(kinds) == 1 and Type.ARRAY not in kinds:
            return [item for item, _, _ in typed], Type.ARRAY, kinds.pop()
    elif isinstance(value, bool):
        return value, Type.BOOL, None
    elif isinstance(value, int) and -(1 << 31) <= value < 1 << 32:
        return value, Type.UINT32 if value >= 0 else Type.INT32, None
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value, Type.UINT64 if value >= 0 else Type.INT64, None
    elif isinstance(value, float):
        return value, Type.FLOAT32, None
    elif isinstance(value, str):
        return value.encode("utf-8", "surrogateescape"), Type.STRING, None
    raise UserError(f"the metadata {key} has a value that GGUF cannot store; remove it")


def _quantized(path: Path, kind: str, progress: Progress) -> Path:
    """Quantize ``path``; return the new file beside it.

    A process of its own does it, because llama.cpp cannot be interrupted, and ends the process on
    some errors.
    """
    output = path.with_name("quantized.gguf")
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, path.name, output.name, kind],
        # Python would look for modules in the user's folder first, which may be a model's.
        cwd=path.parent,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    with child:
        try:
            assert child.stdout is not None
            for line in child.stdout:
                done, total = map(int, line.split())
                progress("quantizing", done, total)
            error = child.communicate()[1]
        finally:
            child.kill()
    if child.returncode:
        raise UserError(f"llama.cpp cannot quantize to {kind}: {' '.join(error.split())[-300:]}")
    return output


def _quantize(path: str, output: str, kind: str) -> None:
    """The process that quantizes: a line with the number of each tensor and of all on stdout."""
    import llama_cpp.llama_cpp as llama

    errors: deque[str] = deque(maxlen=5)

    def log(level: int, text: bytes, _: Any) -> None:
        if found := re.match(rb"\[ *(\d+)/ *(\d+)\]", text):
            try:
                print(*map(int, found.groups()), flush=True)
            except OSError:  # whoever asked is gone
                os._exit(1)
        elif level == 4:  # an error
            errors.append(text.decode("utf-8", "replace"))

    callback = llama.llama_log_callback(log)
    llama.llama_log_set(callback, None)
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama.llama_model_quantize(os.fsencode(path), os.fsencode(output), parameters):
        sys.exit("".join(errors) or "it does not say why")


if __name__ == "__main__":
    _quantize(*sys.argv[1:])
