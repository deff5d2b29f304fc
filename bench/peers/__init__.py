"""The systems that people would otherwise use, measured by the same bench.

``PEERS`` lists them. ``parse_peer`` reads ``--peer``: ``NAME``, ``NAME:MODE``,
``NAME:MODE?SETTING=VALUE&SETTING=VALUE``, and for a program of the user's own ``…=PATH`` at the end.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from edgespec.assemble import DRAFTERS
from edgespec.bench.peers.environments import python_of, setup
from edgespec.bench.records.results import OWN, System
from edgespec.errors import UserError
from edgespec.progress import Progress, silent

PLAIN = "plain"
"""The mode of every peer that is the baseline of its others."""


@dataclass(frozen=True)
class Mode:
    """A way to run a peer: a system of the bench."""

    why: str
    """Why these settings: what its documentation recommends on a processor without a GPU."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All can be overridden, by values of the same type."""
    draft: bool = False
    """Whether it needs a draft model."""


@dataclass(frozen=True)
class Peer:
    """A system that others make."""

    name: str
    description: str
    worker: str
    """Its module in ``workers``."""
    modes: Mapping[str, Mode]
    requirements: tuple[str, ...] = ()
    """What pip is to install, each with the oldest version that the worker was tried with."""
    program: str | None = None
    """The program that the user gives the path of, if there is one; it is looked for in PATH, too."""
    converts: bool = False
    """Whether it makes files of its own of the model's, once, which may take most of a machine's memory."""
    takes: float = 2.0
    """Times the bytes of the model's file and the draft's that it takes of memory at most, while it loads them or
    evaluates its perplexity."""


_LLAMA_CPP_PYTHON = {"n_batch": 512, "n_gpu_layers": 0, "flash_attn": False}
_IK = {"n_batch": 512, "repack": True, "flash_attn": True}
_SERVER = {"flags": ""}
_LOOKUP = "The server's defaults: the 48 tokens that followed the last occurrence of the last 12."


def _lookup(kind: str) -> dict[str, Any]:
    flags = {"size_n": 12, "size_m": 48, "min_hits": 1}
    return {f"spec_ngram_{kind}_{name}": value for name, value in flags.items()}


_ORT_GENAI = {"quantization": "k_quant_mixed", "block_size": 32, "symmetric": False}
_OPENVINO = {
    "eight_bits": False,
    "kv_cache_precision": "",
    "inference_precision": "f32",
    "dynamic_quantization_group_size": "16",
}
_DTYPE = {"dtype": "auto"}
_TRANSFORMERS = ("transformers>=5.23", "torch>=2.13", "gguf>=0.19", "accelerate>=1.15")

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "llama-cpp-python",
            "llama.cpp through its Python binding",
            "llama_cpp_python",
            {
                PLAIN: Mode("The library's defaults.", _LLAMA_CPP_PYTHON),
                "prompt-lookup": Mode(
                    "LlamaPromptLookupDecoding; its documentation: 10 tokens are good on a GPU, 2 "
                    "are better without one.",
                    _LLAMA_CPP_PYTHON | {"num_pred_tokens": 2, "max_ngram_size": 2},
                ),
            },
            ("llama-cpp-python>=0.3.36",),
        ),
        Peer(
            "ik-llama-cpp",
            "ik_llama.cpp, a fork of llama.cpp that is made for processors, through its Python binding",
            "ik_llama_cpp",
            {PLAIN: Mode("Weights repacked as they are loaded, and flash attention.", _IK)},
            ("ik-llama-cpp-python>=0.1.5", "numpy>=1.26"),
        ),
        Peer(
            "llama-server",
            "llama.cpp's own server",
            "llama_server",
            {
                PLAIN: Mode("The server's defaults, one slot.", _SERVER | {"spec_type": "none"}),
                "ngram-cache": Mode(
                    "The server's defaults, without files of statistics.",
                    _SERVER | {"spec_type": "ngram-cache"},
                ),
                "ngram-simple": Mode(
                    _LOOKUP, _SERVER | {"spec_type": "ngram-simple"} | _lookup("simple")
                ),
                "ngram-map-k": Mode(
                    _LOOKUP, _SERVER | {"spec_type": "ngram-map-k"} | _lookup("map_k")
                ),
                "ngram-map-k4v": Mode(
                    _LOOKUP, _SERVER | {"spec_type": "ngram-map-k4v"} | _lookup("map_k4v")
                ),
                "ngram-mod": Mode(
                    "What --spec-default sets: 48 to 64 tokens after 24 that match.",
                    _SERVER
                    | {
                        "spec_type": "ngram-mod",
                        "spec_ngram_mod_n_match": 24,
                        "spec_ngram_mod_n_min": 48,
                        "spec_ngram_mod_n_max": 64,
                    },
                ),
                "draft": Mode(
                    "The server's defaults: 3 tokens, however unsure the draft model is.",
                    _SERVER
                    | {"spec_type": "draft-simple", "spec_draft_n_max": 3, "spec_draft_p_min": 0.0},
                    draft=True,
                ),
            },
            program="llama-server",
        ),
        Peer(
            "onnxruntime-genai",
            "ONNX Runtime GenAI, its own decoding loop over ONNX Runtime",
            "onnxruntime_genai",
            {
                PLAIN: Mode(
                    "The builder's defaults for processors, but the mix of 4 and 8 bits that is llama.cpp's.",
                    _ORT_GENAI,
                ),
                "ngram": Mode(
                    "Its documentation's example: chained lookup and an adaptive width.",
                    _ORT_GENAI
                    | {"ngram_size": 4, "max_draft_tokens": 8, "min_adaptive_k": 2}
                    | {"ngram_chained_lookup": True},
                ),
                "draft": Mode(
                    "The library's defaults.", _ORT_GENAI | {"max_draft_tokens": 4}, draft=True
                ),
            },
            ("onnxruntime-genai>=0.18", "onnx>=1.23", "onnx-ir>=1.1", *_TRANSFORMERS),
            converts=True,
            takes=4.0,
        ),
        Peer(
            "openvino-genai",
            "OpenVINO GenAI, Intel's runtime",
            "openvino_genai",
            {
                PLAIN: Mode(
                    "Arithmetic that its kernels of 4 bits have; no cache of prefixes.", _OPENVINO
                ),
                "prompt-lookup": Mode(
                    "Its example's: 5 tokens after at most 3 that match.",
                    _OPENVINO | {"num_assistant_tokens": 5, "max_ngram_size": 3},
                ),
                "draft": Mode(
                    "Its example's: 4 tokens.", _OPENVINO | {"num_assistant_tokens": 4}, draft=True
                ),
            },
            ("openvino-genai>=2026.4.1", "gguf>=0.19"),
            converts=True,
            takes=5.0,
        ),
        Peer(
            "transformers",
            "Hugging Face's transformers on PyTorch",
            "transformers_",
            {
                PLAIN: Mode("bfloat16 where the processor computes in it.", _DTYPE),
                "prompt-lookup": Mode(
                    "The library's defaults: 10 tokens after at most 2 that match.",
                    _DTYPE | {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 2},
                ),
                "assisted": Mode(
                    "The library's defaults: 20 tokens, as long as the draft model is sure of them.",
                    _DTYPE | {"num_assistant_tokens": 20, "assistant_confidence_threshold": 0.4},
                    draft=True,
                ),
            },
            _TRANSFORMERS,
            takes=10.0,  # every weight becomes a float32 first
        ),
    )
}

_GRAMMAR = re.compile(
    r"(?P<name>[\w-]+)(?::(?P<mode>[\w-]*))?(?:\?(?P<settings>[\w-]+=[^=&]*(?:&[\w-]+=[^=&]*)*))?"
    r"(?:=(?P<path>.+))?"
)


def parse_peer(text: str) -> list[System]:
    """The systems that ``--peer TEXT`` asks for: of one mode or of all, after their plain decoding.

    A setting counts for each of these modes that has it. Raises ``UserError``.
    """
    parts = _GRAMMAR.fullmatch(text)
    if not parts:
        raise UserError(
            f"--peer {text!r} is none; write NAME, NAME:MODE, NAME:MODE?SETTING=VALUE or NAME=PATH"
        )
    peer = _chosen(parts["name"], PEERS, "peer")
    modes = dict(peer.modes)
    if parts["mode"] is not None:
        mode = _chosen(parts["mode"], modes, f"mode of {peer.name}")
        modes = {name: m for name, m in modes.items() if m is mode or name == PLAIN}
    asked = dict(pair.split("=") for pair in (parts["settings"] or "").split("&") if pair)
    known = {name: value for mode in modes.values() for name, value in mode.settings.items()}
    for name in asked:
        if name not in known:
            _unknown(name, known, f"setting of {text.partition('?')[0]}")
    values = {name: _value(name, given, known[name]) for name, given in asked.items()}
    program = _program(peer, parts["path"])
    systems: list[System] = []
    for name, mode in modes.items():
        settings = dict(mode.settings) | {n: v for n, v in values.items() if n in mode.settings}
        changed = [f"{n}={v}" for n, v in settings.items() if v != mode.settings[n]]
        baseline = systems[0].name if systems else None
        settings |= {"program": program} if program else {}
        systems.append(System(" ".join([peer.name, name, *changed]), peer.name, settings, baseline))
    return systems


def mode_of(system: System) -> Mode:
    """The mode that a system of ``parse_peer`` runs."""
    return PEERS[system.peer].modes[system.name.split()[1]]


def setup_named(name: str, progress: Progress = silent) -> Path:
    """The Python that runs a peer, which is installed if that has not been done. Raises ``UserError``."""
    peer = _chosen(name, PEERS, "peer")
    return python_of(peer) or setup(peer, progress)


def process_of(system: System) -> str:
    """The process that answers for ``system``. What edgespec does on one runtime without a draft model shares one,
    so that no ratio between these is one of two processes; see ``bench.switching``."""
    if not system.is_own:
        return system.name
    draft, on = system.settings["draft"], f"{OWN} on {system.settings['runtime']}"
    return on if draft in DRAFTERS else f"{on} with {Path(draft).name}"


def takes(system: System) -> float:
    """Times the bytes of its files that it takes of memory at most."""
    return Peer.takes if system.is_own else PEERS[system.peer].takes


def converts(system: System) -> bool:
    """Whether opening it may take much memory the first time."""
    return not system.is_own and PEERS[system.peer].converts


def worker_of(system: System) -> tuple[list[str], dict[str, str]]:
    """How the worker of a system is started, and its environment variables.

    Raises ``UserError`` if the peer is not installed.
    """
    if system.is_own:
        return [sys.executable, "-m", f"{__name__}.workers.own"], dict(os.environ)
    peer = PEERS[system.peer]
    python = python_of(peer)
    if python is None:
        raise UserError(
            f"{peer.name} is not installed; run `edgespec bench --setup-peer {peer.name}` first"
        )
    variables = {
        "PYTHONPATH": str(Path(__file__).parent.resolve()),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
    }
    return [str(python), "-m", f"workers.{peer.worker}"], os.environ | variables


def _program(peer: Peer, path: str | None) -> str | None:
    """The file of the program that the peer runs, absolute."""
    if peer.program is None:
        if path:
            raise UserError(f"{peer.name} takes no path: it is a Python package")
        return None
    if path is None:
        if found := shutil.which(peer.program):
            return found
        raise UserError(
            f"there is no {peer.program} in PATH; give --peer {peer.name}=PATH of yours"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}")
    return str(file.resolve())


def _value(name: str, text: str, default: Any) -> Any:
    """``text`` as a value of the default's type."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (ValueError, LookupError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        raise UserError(f"{name}={text} should be {wanted}") from error


def _chosen(name: str, table: Mapping[str, Any], what: str) -> Any:
    if name not in table:
        _unknown(name, table, what)
    return table[name]


def _unknown(name: str, known: Iterable[str], what: str) -> NoReturn:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    raise UserError(f"{name!r} is no {what}; {hint}")
