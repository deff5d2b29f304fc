from __future__ import annotations

import contextlib
import copy
import gzip
import json
import tracemalloc
from collections.abc import Callable
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


def test_whatever_a_record_holds_it_is_read_or_refused(
    tmp_path: Path, data: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    """Every value is replaced and removed in turn: what the schema refuses is refused, and nothing else fails."""
    name = "edgespec suffix"
    small = {
        **data,
        "systems": {name: data["systems"][name] | {"baseline": None}},
        "answers": [{**data["answers"][1], "token_ids": [1]}],
    }
    assert files.load_results(written(tmp_path, json.dumps(small))).answers
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
            path = written(tmp_path, json.dumps(changed))
            if validator.is_valid(changed):
                with contextlib.suppress(UserError):  # names that lead nowhere
                    files.load_results(path)
            else:
                refused += 1
                with pytest.raises(UserError):
                    files.load_results(path)
    assert refused > 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON, or was cut off"),
        ("not", "no JSON, or was cut off"),
        ("[" * 100_000, "no JSON, or was cut off"),
        ("[]", "is not of type 'object'"),
        ("{}", "'schema' is a required property"),
        ('{"schema": 2}', "its schema is 2; this edgespec reads 1"),
        ('{"schema": NaN}', "a number is out of range: nan"),
        ('{"model": 1e999}', "a number is out of range: inf"),
        (f'{{"model": {10**30}}}', "a number is out of range: 1e+30"),
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
    with pytest.raises(UserError, match="a number is out of range: inf"):
        files.load_results(written(tmp_path, text.replace("-77", "1e999")))


@pytest.mark.parametrize("form", ["plain", "compressed"])
def test_no_more_than_the_limit_is_read(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    text = json.dumps(data).encode()
    path = tmp_path / ("results.json" if form == "plain" else "results.json.gz")
    path.write_bytes(text if form == "plain" else gzip.compress(text))
    monkeypatch.setattr(files, "MAX_BYTES", len(text))
    assert files.load_results(path) == Results.from_json(data)
    monkeypatch.setattr(files, "MAX_BYTES", len(text) - 1)
    with pytest.raises(UserError, match=f"at most {len(text) - 1:,}"):
        files.load_results(path)


def test_a_small_file_that_expands_without_end_is_not_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 100_000
    (tmp_path / "results.json.gz").write_bytes(bomb)
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    tracemalloc.start()
    with pytest.raises(UserError, match="too large"):
        files.load_results(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b"no" + b, lambda b: b[:30] + b"?" * 30 + b[60:]]
)
def test_a_damaged_compressed_file_is_refused(
    tmp_path: Path, data: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "results.json.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(data).encode())))
    with pytest.raises(UserError, match="damaged, or was cut off"):
        files.load_results(path)


RUNS = sorted(
    path.parent for path in (Path(__file__).parents[3] / "bench" / "results").glob("*/report.md")
)


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_the_runs_that_are_kept_here_can_be_read(folder: Path) -> None:
    run = files.load_results(folder)
    assert {answer.system for answer in run.answers} <= run.systems.keys()
    assert len(run.answers) >= 50


def test_the_runs_that_are_kept_here_are_small() -> None:
    assert len(RUNS) == 3
    assert sum(path.stat().st_size for folder in RUNS for path in folder.iterdir()) < 3_000_000
