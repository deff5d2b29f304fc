"""A tokenizer from a folder in Hugging Face's format: ``tokenizer.json`` and what goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgespec.models.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    SpacePrefix,
    SpecialToken,
    Tokenizer,
    TokenizerError,
)
from edgespec.models.tokenizer_gguf import stop_tokens_of


def from_folder(cls: type[Tokenizer], folder: Path) -> Tokenizer:
    """The tokenizer of ``tokenizer.json`` and the files beside it. Raises ``TokenizerError``."""
    import tokenizers

    description = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json", {})
    generation = _read_json(folder / "generation_config.json", {})
    added = description.get("added_tokens") or []
    space_prefix = _take_space_prefix(description)
    try:
        model = tokenizers.Tokenizer.from_str(
            json.dumps(description | {"added_tokens": [], "post_processor": None})
        )
    except Exception as error:  # the library raises nothing more particular
        reason = str(error).splitlines()[0]
        raise TokenizerError(f"tokenizer.json does not load ({reason})") from error
    ids = model.get_vocab() | {token["content"]: token["id"] for token in added}
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for text, id in ids.items():
        tokens[id] = text
    byte_level = '"ByteLevel"' in json.dumps(description.get("decoder"))
    kinds = [NORMAL if text else UNUSED for text in tokens]
    if not byte_level:
        for name in (f"<0x{byte:02X}>" for byte in range(256)):
            if name in ids:
                kinds[ids[name]] = BYTE
    for token in added:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    bos = _token_name(config.get("bos_token"))
    eos = ids.get(_token_name(config.get("eos_token")))
    ends = generation.get("eos_token_id", [])
    stop_tokens, _ = stop_tokens_of(ids, {"eos": eos})
    return cls(
        model,
        tokens,
        kinds,
        [
            SpecialToken(t["content"], t["id"], t["special"], t["lstrip"], t["rstrip"])
            for t in added
            if t["content"]
        ],
        byte_level=byte_level,
        space_prefix=space_prefix,
        bos=ids.get(bos),
        eos=eos,
        add_bos=bool(config.get("add_bos_token", _first_added(description) == bos)),
        stop_tokens=stop_tokens | set(ends if isinstance(ends, list) else [ends]),
        chat_template=_folder_template(folder, config),
    )


def _read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path.name} ({error})") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} holds no JSON object")
    return value


def _token_name(value: Any) -> str:
    """A token in tokenizer_config.json is its text, or an object that has the text."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _first_added(description: Mapping[str, Any]) -> str | None:
    """The special token that the post-processor puts before every text."""
    processor = description.get("post_processor") or {}
    for part in processor.get("processors", [processor]):
        if part.get("type") == "TemplateProcessing" and "SpecialToken" in part["single"][0]:
            return str(part["single"][0]["SpecialToken"]["id"])
    return None


def _take_space_prefix(description: dict[str, Any]) -> SpacePrefix:
    """Find out where the tokenizer puts a space before a text, and stop it: ``encode`` does it."""
    normalizer = description.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    kept = [part for part in parts if part.get("type") != "Prepend"]
    if len(kept) < len(parts):
        description["normalizer"] = {"type": "Sequence", "normalizers": kept}
        return "always"
    cutter = description.get("pre_tokenizer") or {}
    for part in cutter.get("pretokenizers", [cutter]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            first = part.get("prepend_scheme") == "first"
            part["prepend_scheme"] = "never"
            return "bare first" if first else "bare always"
    return "never"


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or in the configuration, alone or the one "default"."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
