"""A tokenizer from and to a folder in Hugging Face's format: ``tokenizer.json`` and its companions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgespec.models.tokenizer_gguf import merges_of, missing_name, stop_tokens_of
from edgespec.models.vocabulary import (
    ASCII_SPACES,
    BYTE,
    CONTROL,
    LONE_SURROGATE,
    NORMAL,
    SPACE,
    UNICODE_SPACES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SpacePrefix,
    SpecialToken,
    TokenizerError,
    Vocabulary,
    VocabularyT,
)

_MAX_TOKENS = 1 << 22


def from_folder(cls: type[VocabularyT], folder: Path) -> VocabularyT:
    """The tokenizer of ``tokenizer.json`` and the files beside it. Raises ``TokenizerError``."""
    description = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json", {})
    file = folder / "generation_config.json"  # where it is absent, transformers takes the model's
    generation = _read_json(file) if file.exists() else _read_json(folder / "config.json", {})
    try:
        return _from_description(cls, description, config, generation, folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"its files are not as they should be ({error!r:.100})") from error


def _from_description(
    cls: type[VocabularyT],
    description: dict[str, Any],
    config: dict[str, Any],
    generation: dict[str, Any],
    folder: Path,
) -> VocabularyT:
    import tokenizers

    added = description.get("added_tokens") or []
    space_prefix = _take_space_prefix(description)
    ids = _take_vocabulary(description, added)
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for text, id in ids.items():
        tokens[id] = text
    try:
        model = tokenizers.Tokenizer.from_str(
            json.dumps(description | {"added_tokens": [], "post_processor": None})
        )
    except Exception as error:  # the library raises nothing more particular
        reason = str(error).splitlines()[0]
        raise TokenizerError(f"tokenizer.json does not load ({reason})") from error
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
    stop_tokens, named = stop_tokens_of(ids, {"eos": eos})
    flags = {
        t["id"]: (
            bool(t["lstrip"]),
            bool(t["rstrip"]),
            bool(t.get("single_word")),
            UNICODE_SPACES if t["lstrip"] or t["rstrip"] else ASCII_SPACES,
        )
        for t in added
    }
    return cls(
        model,
        tokens,
        kinds,
        [
            SpecialToken(tokens[id], id, id in named or kinds[id] == CONTROL, *flags.get(id, ()))
            for id in (*named, *(id for id in flags if id not in named))
            if tokens[id]
        ],
        byte_level=byte_level,
        space_prefix=space_prefix,
        bos=ids.get(bos),
        eos=eos,
        add_bos=bool(config.get("add_bos_token", _first_added(description) == bos)),
        stop_tokens=stop_tokens | _ends(generation),
        chat_template=_folder_template(folder, config),
    )


def _ends(config: Mapping[str, Any]) -> set[int]:
    """The ids of ``eos_token_id``, of a model with several parts those of its text; null is none."""
    found = config.get("eos_token_id")
    if found is None and isinstance(text := config.get("text_config"), dict):
        found = text.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return {id for id in ids if isinstance(id, int) and not isinstance(id, bool) and id >= 0}


def to_folder(tokenizer: Vocabulary, folder: Path) -> None:
    """Write what ``from_folder`` reads, and transformers too.

    Left out are tokens that no text has and no merge makes: names of unused ids, and strings that
    are not UTF-8.
    """
    files = {
        "tokenizer.json": _describe(tokenizer),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _name(tokenizer, tokenizer.bos),
            "eos_token": _name(tokenizer, tokenizer.eos),
            "add_bos_token": tokenizer.add_bos,
            "clean_up_tokenization_spaces": False,
        },
        "generation_config.json": {
            "bos_token_id": tokenizer.bos,
            "eos_token_id": sorted(tokenizer.stop_tokens),
        },
    }
    texts = {name: json.dumps(value, ensure_ascii=False, indent=2) for name, value in files.items()}
    if tokenizer.chat_template is not None:
        texts["chat_template.jinja"] = tokenizer.chat_template
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8", "replace"))


def _name(tokenizer: Vocabulary, id: int | None) -> str | None:
    return None if id is None else tokenizer.token_text(id)


def _describe(tokenizer: Vocabulary) -> dict[str, Any]:
    """The content of ``tokenizer.json``: the model as it is, and around it what ``encode`` does."""
    description: dict[str, Any] = json.loads(tokenizer.model.to_str())
    model = description["model"]
    kinds = tokenizer.kinds
    made = {left + right for left, right in merges_of(model)}
    unknown = model["vocab"].pop(model["unk_token"], None) if model.get("unk_token") else None
    vocabulary = {
        text: id
        for text, id in model["vocab"].items()
        if id < len(kinds) and (kinds[id] != UNUSED or text in made)
    }
    special_kinds = (CONTROL, UNKNOWN, USER_DEFINED)
    specials = [s for s in tokenizer.specials if kinds[s.id] in special_kinds]
    specials = [s for s in specials if not LONE_SURROGATE.search(s.text)]
    # Ids of special tokens stay as they are only if the vocabulary has them.
    vocabulary |= {special.text: special.id for special in specials}
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    model["unk_token"] = None
    if unknown is not None and unknown < len(kinds):
        model["unk_token"] = tokenizer.token_text(unknown)
    description["added_tokens"] = [
        {
            "id": special.id,
            "content": special.text,
            "single_word": special.single_word,
            "lstrip": special.strip_left,
            "rstrip": special.strip_right,
            "normalized": False,
            "special": kinds[special.id] != USER_DEFINED,
        }
        for special in sorted(specials, key=lambda special: special.id)
    ]
    _put_space_prefix(description, tokenizer.space_prefix)
    description["post_processor"] = _bos_processor(tokenizer)
    description["decoder"] = _decoder(tokenizer)
    return description


def _take_vocabulary(description: dict[str, Any], added: list[Any]) -> dict[str, int]:
    """The ids of all tokens. From a BPE's own they are taken as ``from_metadata`` does: control
    tokens go, so no merge of a user's text can make one; characters that have no token are unknown,
    and not left out, so what lies around them does not merge.
    """
    model = description["model"]
    ids: dict[str, int] = model["vocab"]
    if isinstance(ids, list):  # Unigram's, with scores
        ids = {token: id for id, (token, _) in enumerate(ids)}
    ids = ids | {token["content"]: token["id"] for token in added}
    if not all(isinstance(id, int) and 0 <= id < _MAX_TOKENS for id in ids.values()):
        raise TokenizerError(f"tokenizer.json has ids that are not from 0 to {_MAX_TOKENS - 1}")
    if "merges" not in model or model.get("continuing_subword_prefix"):
        return ids
    model["type"] = "BPE"  # old files leave it out
    controls = {token["content"] for token in added if token["special"]}
    pairs = merges_of(model)
    model["merges"] = [[a, b] for a, b in pairs if controls.isdisjoint((a, b, a + b))]
    name = missing_name(ids)
    unknown = ids.get(model.get("unk_token"), max(ids.values(), default=-1) + 1)
    kept = {text: id for text, id in model["vocab"].items() if text not in controls}
    model["vocab"], model["unk_token"] = kept | {name: unknown}, name
    return ids


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


def _put_space_prefix(description: dict[str, Any], space_prefix: SpacePrefix) -> None:
    """The inverse of ``_take_space_prefix``."""
    if space_prefix == "always":
        prepend = {"type": "Prepend", "prepend": SPACE}
        normalizer = description["normalizer"] or {"type": "Sequence", "normalizers": []}
        rest = normalizer.get("normalizers", [normalizer])
        description["normalizer"] = {"type": "Sequence", "normalizers": [prepend, *rest]}
    elif space_prefix != "never":
        cutter = description["pre_tokenizer"]
        for part in cutter.get("pretokenizers", [cutter]):
            if part["type"] == "Metaspace":
                part["prepend_scheme"] = space_prefix.removeprefix("bare ")


def _bos_processor(tokenizer: Vocabulary) -> dict[str, Any] | None:
    """The post-processor that puts ``bos`` before every text."""
    if not tokenizer.add_bos or tokenizer.bos is None:
        return None
    bos = tokenizer.token_text(tokenizer.bos)
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": type_id}} for type_id, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, text[0]],
        "pair": [first, text[0], first, text[1]],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}},
    }


def _decoder(tokenizer: Vocabulary) -> dict[str, Any]:
    if tokenizer.byte_level:
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    parts: list[dict[str, Any]] = [space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if tokenizer.space_prefix != "never":
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}


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
