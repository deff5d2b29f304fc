"""A safetensors folder of any architecture, through Optimum, as a folder that the onnx runtime loads.

Extra ``[export]``. For the architectures that ``edgespec.export.architectures`` does not have: the graph
is Optimum's plain one, in float32 (``edgespec.runtimes.onnx_optimum`` runs it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgespec.errors import UserError
from edgespec.export.bundle import new_folder
from edgespec.progress import Progress, silent

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def export_with_optimum(folder: Path, out: Path, progress: Progress = silent) -> Path:
    """Write ``out``: ``model.onnx``, its weights, ``config.json`` and the tokenizer's files.

    ``folder`` holds ``config.json`` and safetensors. Nothing is downloaded, unpickled, or run that the
    folder brings. ``out`` is made under a temporary name beside it and renamed when whole. Raises
    ``UserError`` where the extra is missing, ``out`` exists, or Optimum cannot export the model.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} is no model folder with config.json and .safetensors files")
    with new_folder(out) as partial:
        if not _installed():
            raise UserError("Optimum's exporter is not installed: pip install 'edgespec[export]'")
        progress("exporting with Optimum", 0, 1)
        _run(folder, partial)
        # As they were, not as another version of transformers has them.
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
    progress("exporting with Optimum", 1, 1)
    return out


def _installed() -> bool:
    try:
        return find_spec("optimum.exporters.onnx") is not None
    except ImportError:  # of a package that it is in
        return False


def _run(folder: Path, out: Path) -> None:
    """Run ``_export`` in a process of its own.

    Optimum opens sessions of ONNX Runtime with pools of threads of their own, which a process that has
    loaded a model here no longer can; and the memory and output of torch and its tracer end with that process.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONSAFEPATH": "1",  # no torch.py from the current folder
    }
    command = [sys.executable, "-m", __name__, str(folder.resolve()), str(out.resolve())]
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise UserError(f"Optimum cannot export {folder}: {lines[-1][:300]}")


def _export(folder: Path, out: Path) -> None:
    import torch
    import transformers
    from optimum.exporters.onnx import onnx_export_from_model
    from optimum.exporters.tasks import TasksManager

    task = "text-generation-with-past"
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    if int(transformers.__version__.split(".")[0]) < 5:
        _name_rope_as_before_5(config)
    config.use_cache = True
    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            config.model_type, "onnx", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    if task not in tasks:
        raise ValueError(f"it does not know how to export {config.model_type} for {task}")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, **local
    )
    onnx_export_from_model(model.eval(), out, task=task, do_validation=False)


def _name_rope_as_before_5(config: Any) -> None:
    """Transformers 5 writes ``rope_parameters``, which earlier ones do not know and pass over."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    if not isinstance(rope, dict) or not isinstance(rope.get("rope_theta"), (int, float)):
        raise ValueError(f"this transformers does not know rope_parameters = {str(rope)[:80]}")
    rope = dict(rope)
    config.rope_theta = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config.partial_rotary_factor = rope.pop("partial_rotary_factor")
    config.rope_scaling = None if rope.get("rope_type", "default") == "default" else rope
    del config.rope_parameters


if __name__ == "__main__":
    try:
        _export(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # Optimum's and torch's have no common base
        sys.exit(" ".join(f"{error or type(error).__name__}".split()))
