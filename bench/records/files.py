"""Reads and writes the record of a run: ``results.json``, or ``results.json.gz``, checked against ``results.schema.json``."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any, TypeVar

from jsonschema import Draft202012Validator

from edgespec.bench.records.results import SCHEMA, Results
from edgespec.errors import UserError

RESULTS = "results.json"
SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
MAX_BYTES = 512 << 20
"""Of a record, decompressed: a small compressed file may expand to any size."""
_MAX_NUMBER = 1e18
_Number = TypeVar("_Number", int, float)


def write_results(results: Results, folder: Path) -> None:
    """``results.json`` in ``folder``, whole or not at all. Raises ``UserError``."""
    path = folder / RESULTS
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(results.to_json(), indent=1), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def load_results(path: Path) -> Results:
    """A whole run, from its folder or its file. Raises ``UserError`` for a file that holds none."""
    try:
        if path.is_dir():
            plain, compressed = path / RESULTS, path / f"{RESULTS}.gz"
            path = compressed if compressed.exists() and not plain.exists() else plain
        text = _read(path).decode("utf-8")
        data = json.loads(text, parse_constant=_float, parse_float=_float, parse_int=_int)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged, or was cut off: {_line(error)}") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; name the {RESULTS} of a run"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or was cut off: {_line(error)}") from error
    if problem := _problem_of(data):
        raise UserError(f"{path} is not a run of the bench: {_line(problem)}")
    return Results.from_json(data)


def _read(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in ``.gz``: at most ``MAX_BYTES``."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is too large; a run has at most {MAX_BYTES:,} bytes")
    return data


def _float(text: str) -> float:
    return _bounded(float(text))


def _int(text: str) -> int:
    return _bounded(int(text))


def _bounded(value: _Number) -> _Number:
    if not abs(value) <= _MAX_NUMBER:  # nor is NaN
        raise ValueError(f"a number is out of range: {value:.3g}")
    return value


def _line(what: object) -> str:
    return " ".join(str(what).split())[:300]


def _problem_of(data: Any) -> str | None:
    """The first thing that is wrong."""
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        return f"its schema is {data['schema']!r}; this edgespec reads {SCHEMA}"
    validator = Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8")))
    if error := next(validator.iter_errors(data), None):
        return f"{error.json_path}: {error.message}"
    systems, seen = data["systems"], set()
    for name, system in systems.items():
        if system["name"] != name or {system["baseline"], system["words"]} - {None, *systems}:
            return f"system {name!r} has another name, or a baseline or words that are not there"
    for answer in data["answers"]:
        key = (answer["system"], answer["prompt"], answer["turn"], answer["round"])
        if answer["system"] not in systems or key in seen:
            return f"answer {key} is there twice, or of no system in it"
        seen.add(key)
    return None
