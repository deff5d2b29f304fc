"""What ``--peer`` may say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgespec.bench import peers
from edgespec.bench.peers import PEERS, PLAIN, mode_of, parse_peer, worker_of
from edgespec.errors import UserError


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "a=b?c&d:e" / "llama-server"
    path.parent.mkdir()
    path.write_text("")
    return path


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_is_a_worker_with_a_plain_mode(name: str, server: Path) -> None:
    peer = PEERS[name]
    assert next(iter(peer.modes)) == PLAIN
    assert all(mode.why for mode in peer.modes.values())
    systems = parse_peer(f"{name}={server}" if peer.program else name)
    assert [mode_of(system) for system in systems] == list(peer.modes.values())
    assert {system.baseline for system in systems[1:]} <= {systems[0].name}
    assert systems[0].baseline is None
    assert len({system.name for system in systems}) == len(systems)


def test_a_mode_comes_with_its_baseline() -> None:
    plain, lookup = parse_peer("llama-cpp-python:prompt-lookup")
    assert (plain.name, plain.baseline) == ("llama-cpp-python plain", None)
    assert (lookup.name, lookup.baseline) == ("llama-cpp-python prompt-lookup", plain.name)
    assert [s.name for s in parse_peer("llama-cpp-python:plain")] == [plain.name]


def test_settings_are_overridden_where_they_are() -> None:
    text = "llama-cpp-python:prompt-lookup?num_pred_tokens=10&flash_attn=True"
    plain, lookup = parse_peer(text)
    assert plain.name == "llama-cpp-python plain flash_attn=True"
    assert lookup.name == "llama-cpp-python prompt-lookup flash_attn=True num_pred_tokens=10"
    assert lookup.baseline == plain.name
    assert lookup.settings["num_pred_tokens"] == 10
    assert lookup.settings["flash_attn"] is True
    assert "num_pred_tokens" not in plain.settings
    assert PEERS["llama-cpp-python"].modes["prompt-lookup"].settings["num_pred_tokens"] == 2
    as_it_is = parse_peer("llama-cpp-python?num_pred_tokens=2")
    assert [s.name for s in as_it_is] == [s.name for s in parse_peer("llama-cpp-python")]


def test_a_path_ends_it(server: Path) -> None:
    systems = parse_peer(f"llama-server:draft?spec_draft_n_max=8={server}")
    assert [system.name for system in systems] == [
        "llama-server plain",
        "llama-server draft spec_draft_n_max=8",
    ]
    assert {system.settings["program"] for system in systems} == {str(server)}


def test_the_program_is_looked_for(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.shutil, "which", lambda name: f"/there/{name}")
    assert parse_peer("llama-server:plain")[0].settings["program"] == "/there/llama-server"
    assert worker_of(parse_peer("llama-server:plain")[0])[0][0] == sys.executable
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no llama-server in PATH"):
        parse_peer("llama-server:plain")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("llama-cpp-pyton", "did you mean llama-cpp-python"),
        ("nothing-like-it", "there are llama-cpp-python, "),
        ("", "none; write"),
        ("llama-cpp-python:", "no mode"),
        ("llama-cpp-python:prompt-lockup", "did you mean prompt-lookup"),
        ("llama-cpp-python:plain?num_pred_tokens=3", "no setting of llama-cpp-python:plain"),
        ("llama-cpp-python?num_pred_token=3", "did you mean num_pred_tokens"),
        ("llama-cpp-python?num_pred_tokens=many", "a whole number"),
        ("llama-cpp-python?flash_attn=1", "true or false"),
        ("llama-cpp-python?flash_attn", "none; write"),
        ("llama-cpp-python=/somewhere", "takes no path"),
        ("llama-server=/no/such/file", "no file /no/such/file"),
        ("a\nb", "none; write"),
    ],
)
def test_what_is_unknown_is_told_in_a_line(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as error:
        parse_peer(text)
    assert "\n" not in str(error.value)
