"""``results.json`` read back, from anywhere: everything in it is checked against ``results.schema.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from edgespec.bench.records.results import SCHEMA, Results
from edgespec.errors import UserError

SCHEMA_FILE = Path(__file__).with_name("results.schema.json")
MOST_BYTES = 512 << 20
_MOST = 1e18
"""Of any number."""
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def load_results(path: Path) -> Results:
    """A whole run. Raises ``UserError`` for a file that holds none."""
    try:
        if path.is_dir():
            path = path / "results.json"
        if (size := path.stat().st_size) > MOST_BYTES:
            raise UserError(f"{path} has {size:,} bytes; a run has at most {MOST_BYTES:,}")
        data = json.loads(path.read_text("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; name the results.json of a run"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON, or was cut off: {_line(error)}") from error
    if problem := _problem_of(data):
        raise UserError(f"{path} is not a run of the bench: {_line(problem)}")
    return Results.from_json(data)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _line(what: object) -> str:
    return " ".join(str(what).split())[:300]


def _problem_of(data: Any) -> str | None:
    """The first thing that is wrong."""
    if isinstance(data, dict) and data.get("schema", SCHEMA) != SCHEMA:
        return f"its schema is {data['schema']!r}; this edgespec reads {SCHEMA}"
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))
    if problem := next(problems(data, schema, schema["$defs"]), None):
        return problem
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


def problems(
    value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], at: str = "it"
) -> Iterator[str]:
    """What is wrong with ``value`` by as much of JSON Schema as ``results.schema.json`` uses."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].removeprefix("#/$defs/")]
    if "const" in schema and value != schema["const"]:
        yield f"{at} is not {schema['const']}"
    types = schema.get("type", ())
    types = [types] if isinstance(types, str) else types
    allowed = any(isinstance(value, _TYPES[t]) for t in types)
    if types and (not allowed or (isinstance(value, bool) and "boolean" not in types)):
        yield f"{at} is not of type {' or '.join(types)}"
    elif isinstance(value, dict):
        yield from _problems_of_object(value, schema, defs, at)
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{at} has {len(value)} items"
        for i, item in enumerate(value):
            yield from problems(item, schema.get("items", {}), defs, f"{at}[{i}]")
    elif isinstance(value, (int, float)) and not schema.get("minimum", -_MOST) <= value <= _MOST:
        yield f"{at} is out of range"


def _problems_of_object(
    value: dict[str, Any], schema: Mapping[str, Any], defs: Mapping[str, Any], at: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{at} has no {name}"
    pattern = schema.get("propertyNames", {}).get("pattern", "")
    other = schema.get("additionalProperties", True)
    for name, item in value.items():
        where = f"{at}.{name}"
        if not re.search(pattern, name):
            yield f"{where} is no number of tokens"
        if name in known:
            yield from problems(item, known[name], defs, where)
        elif other is False:
            yield f"{where} is unknown"
        elif other is not True:
            yield from problems(item, other, defs, where)
