from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgespec.bench.records import files
from edgespec.bench.records.results import Results
from edgespec.errors import UserError
from tests.bench.results import simulated


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return json.loads(json.dumps(simulated(prompts=1, rounds=1, tokens=12).to_json()))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(files.SCHEMA_FILE.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    return tmp_path / "results.json"


def test_a_run_is_read_back_as_it_was(
    tmp_path: Path, data: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(data)
    path = written(tmp_path, json.dumps(data))
    assert files.load_results(path) == simulated(prompts=1, rounds=1, tokens=12)
    assert files.load_results(tmp_path) == files.load_results(path)
    empty = Results(
        {"name": "x", "sha256": "y"}, {"max_tokens": 1, "temperature": 0}, {}, {}, {}, []
    )
    empty.energy["reader"] = None
    validator.validate(empty.to_json())
    assert files.load_results(written(tmp_path, json.dumps(empty.to_json()))) == empty


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where anything is, the first two items of a list standing for all."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value[:2]))
    deeper = [(key, item) for key, item in inner if isinstance(item, (dict, list))]
    return [(*path, key) for key, _ in inner] + [
        place for key, item in deeper for place in places(item, (*path, key))
    ]


def test_what_the_schema_refuses_is_refused_and_nothing_else(
    data: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    """Every value is replaced and removed in turn, and jsonschema is asked too."""
    schema = validator.schema
    name = "edgespec suffix"
    small = {
        **data,
        "systems": {name: data["systems"][name]},
        "answers": [{**data["answers"][1], "token_ids": [1]}],
    }
    refused = 0
    for place in places(small):
        for value in (None, -1, "x", True, [], {}, {"a": 1}, [1], [-1, 1.5], ...):
            changed = copy.deepcopy(small)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if value is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            found = list(files.problems(changed, schema, schema["$defs"]))
            assert bool(found) != validator.is_valid(changed), (place, value)
            refused += bool(found)
    assert refused > 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON, or was cut off"),
        ("not", "no JSON, or was cut off"),
        ("[" * 100_000, "no JSON, or was cut off"),
        ("[]", "it is not of type object"),
        ("{}", "it has no schema"),
        ('{"schema": 2}', "its schema is 2; this edgespec reads 1"),
        ('{"schema": NaN}', "NaN is no number"),
        ('{"model": 1e999}', "it has no schema"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        files.load_results(written(tmp_path, text))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_was_cut_off_or_is_not_there(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cut off"):
        files.load_results(written(tmp_path, json.dumps(data)[:-100]))
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        files.load_results(tmp_path / "absent.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no JSON"):
        files.load_results(tmp_path)


def test_names_that_lead_nowhere_are_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    def refused(change: dict[str, Any]) -> str:
        with pytest.raises(UserError) as error:
            files.load_results(written(tmp_path, json.dumps(data | change)))
        return str(error.value)

    assert "twice" in refused({"answers": [*data["answers"], data["answers"][0]]})
    assert "no system" in refused({"answers": [{**data["answers"][0], "system": "unknown"}]})
    renamed = {**data["systems"]["edgespec suffix"], "baseline": "unknown"}
    assert "baseline" in refused({"systems": data["systems"] | {"edgespec suffix": renamed}})


def test_a_number_without_end_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data | {"answers": [{**data["answers"][0], "ttft_s": -77}]})
    with pytest.raises(UserError, match=r"answers\[0\]\.ttft_s is out of range"):
        files.load_results(written(tmp_path, text.replace("-77", "1e999")))


def test_a_huge_file_is_not_read(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="at most 100"):
        files.load_results(written(tmp_path, json.dumps(data)))
