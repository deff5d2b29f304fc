"""Profiles: what a curve says between and beyond its points, and files that come from anywhere."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.core.latency import LatencyCurve
from edgespec.device.machine import physical_cores
from edgespec.device.profile import Profile, Setup, fingerprint, key, setup
from edgespec.device.profile_files import dumps, load, read_profile, save
from edgespec.errors import UserError
from edgespec.models import store
from edgespec.runtimes import get

CURVE = LatencyCurve(
    rows=(1, 2, 4, 8),
    lengths=(64, 512),
    seconds=((0.030, 0.033, 0.042, 0.068), (0.032, 0.036, 0.046, 0.076)),
    spread=((0.01, 0.02, 0.01, 0.0),) * 2,
)
PROFILE = Profile(
    machine={"cpu": "A CPU", "cores": 2, "threads": 4, "system": "Linux x86_64", "power": "mains"},
    model={"name": "A model", "fingerprint": "0" * 64, "weight_bytes": 1_200_000_000},
    runtime="onnx",
    runtime_version="1.31.0, built by 5",
    device="cpu",
    exact=True,
    threads=2,
    curve=CURVE,
    prefill_tokens_per_s=80.0,
    thread_counts={1: 0.055, 2: 0.030},
    quick=False,
    created="2026-11-21T12:00:00+00:00",
    pass_sizes=(1, 2, 4, 8, 16),
)


# -- the curve ---------------------------------------------------------------------------------


def test_a_curve_gives_back_what_was_measured() -> None:
    for length, seconds in zip(CURVE.lengths, CURVE.seconds, strict=True):
        assert CURVE.at(length)[np.array(CURVE.rows) - 1] == pytest.approx(seconds)


def test_it_is_linear_between() -> None:
    assert CURVE.at(64)[2] == pytest.approx((0.033 + 0.042) / 2)
    assert CURVE.at(288)[0] == pytest.approx(0.031)
    assert CURVE.at(288)[5] == pytest.approx((0.055 + 0.061) / 2)


def test_beyond_it_goes_on_as_steep_as_last() -> None:
    assert CURVE.at(64).shape == (64,)
    assert CURVE.at(64)[63] == pytest.approx(0.068 + 56 * (0.068 - 0.042) / 4)
    assert CURVE.at(512 + 896)[0] == pytest.approx(0.032 + 2 * 0.002)
    assert CURVE.at(0) == pytest.approx(CURVE.at(64))


def test_a_draft_has_passes_of_one_or_two_tokens_and_prompts() -> None:
    curve = PROFILE.draft_curve(get(PROFILE.runtime).prefill_chunk)
    assert curve.rows == (1, 2, 64)
    assert curve.seconds == ((0.030, 0.033, 0.8), (0.032, 0.036, 0.8))
    assert len(curve.spread[1]) == 3


def test_a_profile_of_a_busy_machine_is_not_steady() -> None:
    def steady(**changed: object) -> bool:
        return replace(PROFILE, curve=replace(CURVE, **changed)).steady

    assert steady()
    assert not steady(spread=((0.0,) * 4,) * 2), "one sample each"
    assert not steady(spread=((0.4,) * 4,) * 2)
    assert not steady(seconds=((0.3, 0.033, 0.042, 0.068), CURVE.seconds[1]))


def test_noise_that_falls_is_not_continued() -> None:
    falling = replace(CURVE, seconds=((0.03, 0.033, 0.05, 0.045), (0.02, 0.033, 0.05, 0.04)))
    assert falling.at(64)[8:] == pytest.approx(0.045)
    assert falling.at(10_000)[0] == pytest.approx(0.02)
    assert falling.at(10_000)[63] == pytest.approx(0.04)


def test_one_point_is_all_there_is() -> None:
    assert LatencyCurve((2,), (0,), ((0.05,),), ((0.0,),)).at(700) == pytest.approx(0.05)


def test_figures_of_a_profile() -> None:
    assert PROFILE.bandwidth == pytest.approx(40e9)
    assert PROFILE.tokens_per_s(0) == pytest.approx(1 / 0.030)
    assert PROFILE.tokens_per_s(0.5) == pytest.approx(1.5 / 0.033)
    assert PROFILE.tokens_per_s(1) == pytest.approx(8 / 0.068)
    assert PROFILE.best_threads == 2
    assert replace(PROFILE, thread_counts={1: 0.0295, 2: 0.030}).best_threads == 2
    assert replace(PROFILE, thread_counts={1: 0.020, 2: 0.030}).best_threads == 1


# -- keys --------------------------------------------------------------------------------------

SETUP = PROFILE.setup


def another(**machine: str | int) -> Setup:
    return replace(SETUP, machine={**SETUP.machine, **machine})


@pytest.mark.parametrize(
    "other",
    [
        replace(SETUP, fingerprint="1" * 64),
        replace(SETUP, runtime="llama-cpp"),
        replace(SETUP, runtime_version="1.31.1, built by 5"),
        replace(SETUP, device="cuda"),
        replace(SETUP, exact=False),
        replace(SETUP, threads=1),
        another(cpu="Another CPU"),
        another(cores=4),
        another(system="Windows AMD64"),
        another(power="battery"),
        another(pages="huge"),
    ],
)
def test_all_that_could_make_a_profile_wrong_is_in_its_key(other: Setup) -> None:
    assert key(other) != key(SETUP)


def test_the_formats_version_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(SETUP)
    monkeypatch.setattr("edgespec.device.profile.VERSION", 2)
    assert key(SETUP) != before


def test_what_was_measured_is_not_in_the_key() -> None:
    measured = replace(PROFILE, machine={**PROFILE.machine, "memory_bytes_per_s": 5e10})
    assert key(measured.setup) == key(SETUP)


def test_a_setup_is_what_runs(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    found = setup(model, get("onnx"))
    assert (found.device, found.threads, found.exact) == ("cpu", physical_cores(), True)
    assert found == setup(model, get("onnx"), device="cpu", threads=physical_cores())
    assert found == setup(model, get("onnx"), provider="cpu")
    with pytest.raises(UserError, match="no device 'tpu'"):
        setup(model, get("onnx"), device="tpu")
    with pytest.raises(UserError, match="cannot read"):
        setup(tmp_path / "absent.gguf", get("onnx"))


def test_llama_cpp_promises_no_exactness(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    (tmp_path / "model.gguf").write_bytes(b"weights")
    exact, not_exact = (
        setup(tmp_path / "model.gguf", get("llama-cpp"), exact=exact) for exact in (True, False)
    )
    assert exact == not_exact


def test_a_fingerprint_is_of_size_and_ends(tmp_path: Path) -> None:
    content = bytearray(np.random.default_rng(0).bytes(3 << 20))
    model = tmp_path / "model.gguf"
    seen = set()
    for change in (None, 0, (1 << 20) - 1, 2 << 20, -1):
        if change is not None:
            content[change] ^= 1
        model.write_bytes(content)
        seen.add(fingerprint(model))
    model.write_bytes(content + b"\0")
    seen.add(fingerprint(model))
    assert len(seen) == 6
    model.rename(tmp_path / "renamed.gguf")
    assert fingerprint(tmp_path / "renamed.gguf") in seen


def test_a_folders_fingerprint_is_its_models(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes(b"weights")
    before = fingerprint(tmp_path)
    (tmp_path / "pass_sizes.json").write_text("{}")  # what the runtime keeps there itself
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.onnx.data").write_bytes(b"others!")
    assert fingerprint(tmp_path) != before


# -- files -------------------------------------------------------------------------------------


def test_a_profile_is_kept(home: Path) -> None:
    path = save(PROFILE)
    assert path is not None
    assert path.parent == store.profiles_dir() == home / "profiles"
    assert load(key(SETUP)) == read_profile(path) == PROFILE
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert load(key(another(power="battery")), pytest.fail) is None


def test_another_profiles_file_is_not_trusted(home: Path) -> None:
    path = save(PROFILE)
    assert path is not None
    elsewhere = key(another(cpu="Another CPU"))
    path.rename(path.with_name(f"{elsewhere}.json"))
    notices: list[str] = []
    assert load(elsewhere, notices.append) is None
    assert "another machine" in notices[0]


def edited(*keys: Any, value: Any) -> Callable[[str], str]:
    """The file with one value replaced; ``...`` removes it."""

    def edit(text: str) -> str:
        whole = place = json.loads(text)
        for part in keys[:-1]:
            place = place[part]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        return json.dumps(whole)

    return edit


BROKEN: dict[str, Callable[[str], str | bytes]] = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "zeros": lambda text: bytes(len(text)),
    "not UTF-8": lambda text: b"\xff" + text.encode(),
    "huge": lambda text: text + " " * (1 << 20),
    "deep": lambda text: "[" * 100_000,
    "no object": lambda text: "[]",
    "other JSON": lambda text: '{"a": 1}',
    "older": edited("version", value=0),
    "version of odd type": edited("version", value=[[]]),
    "unknown field": edited("more", value=1),
    "missing field": edited("curve", value=...),
    "NaN": edited("curve", "seconds", 0, 0, value=float("nan")),
    "infinity": edited("curve", "seconds", 0, 0, value=float("inf")),
    "beyond floats": lambda text: text.replace("0.068", "1e999"),
    "a large integer": edited("curve", "seconds", 0, 0, value=10**400),
    "a time of 0": edited("curve", "seconds", 0, 0, value=0),
    "negative": edited("curve", "seconds", 1, 2, value=-0.01),
    "hours": edited("curve", "seconds", 0, 0, value=2e4),
    "a text": edited("curve", "seconds", 0, 0, value="0.03"),
    "a truth": edited("curve", "seconds", 0, 0, value=True),
    "NaN spread": edited("curve", "spread", 0, 0, value=float("nan")),
    "short line": edited("curve", "seconds", 0, value=[0.03]),
    "a line too few": edited("curve", "seconds", value=[[0.03, 0.033, 0.042, 0.068]]),
    "no rows": edited("curve", "rows", value=[]),
    "rows that fall": edited("curve", "rows", value=[2, 1, 4, 8]),
    "rows twice": edited("curve", "rows", value=[1, 1, 4, 8]),
    "row 0": edited("curve", "rows", value=[0, 1, 4, 8]),
    "large rows": edited("curve", "rows", value=[1, 2, 4, 1 << 40]),
    "fractional rows": edited("curve", "rows", value=[1, 2.5, 4, 8]),
    "many rows": edited("curve", "rows", value=list(range(1, 10_000))),
    "negative length": edited("curve", "lengths", value=[-1, 512]),
    "no prefill": edited("prefill_tokens_per_s", value=0),
    "thread counts of odd type": edited("thread_counts", value=[1, 2]),
    "threads by words": edited("thread_counts", value={"two": 0.1, "2": 0.1}),
    "no own threads": edited("thread_counts", value={"1": 0.1}),
    "no threads": edited("threads", value=0),
    "no weights": edited("model", "weight_bytes", value=0),
    "weights of odd type": edited("model", "weight_bytes", value="many"),
    "no fingerprint": edited("model", "fingerprint", value=...),
    "no power": edited("machine", "power", value=...),
    "machine of odd type": edited("machine", value="mine"),
    "a terminal's codes": edited("model", "name", value="\x1b[2J"),
    "a long name": edited("model", "name", value="x" * 1000),
    "a nested fact": edited("machine", "more", value={"a": 1}),
    "a fact of NaN": edited("machine", "more", value=float("nan")),
    "exact of odd type": edited("exact", value=1),
    "pass sizes that fall": edited("pass_sizes", value=[4, 2]),
    "pass sizes of odd type": edited("pass_sizes", value=8),
    "no date": edited("created", value="yesterday"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_no_profile(home: Path, kind: str) -> None:
    path = save(PROFILE)
    assert path is not None
    broken = BROKEN[kind](path.read_text())
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    notices: list[str] = []
    assert load(key(SETUP), notices.append) is None
    assert len(notices) == 1
    with pytest.raises(UserError, match="is not a device profile") as raised:
        read_profile(path)
    for told in (*notices, str(raised.value)):
        assert told.isprintable()
        assert len(told) < 600
    save(PROFILE)
    assert load(key(SETUP), pytest.fail) == PROFILE


def test_a_profile_by_hand_may_be_anyones(tmp_path: Path) -> None:
    (tmp_path / "phone.json").write_text(dumps(replace(PROFILE, device="npu")))
    assert read_profile(tmp_path / "phone.json").device == "npu"
    for name in ("absent.json", "."):
        with pytest.raises(UserError, match="cannot read"):
            read_profile(tmp_path / name)


def test_a_folder_that_takes_nothing_only_costs_the_next_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # where folders cannot be made, by root neither
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "file"))
    notices: list[str] = []
    assert save(PROFILE, notices.append) is None
    assert "cannot keep the profile" in notices[0]
    load(key(SETUP), notices.append)


def test_a_full_disk_leaves_the_old_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(PROFILE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgespec.files.os.replace", full)
    notices: list[str] = []
    assert save(replace(PROFILE, quick=True), notices.append) is None
    assert "No space left" in notices[0]
    assert path is not None
    assert list(path.parent.iterdir()) == [path]
    assert load(key(SETUP)) == PROFILE


def test_two_processes_may_save_at_once(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_save_often, args=(float(n),)) for n in (100, 200)]
    for writer in writers:
        writer.start()
    rates = set()
    while any(writer.is_alive() for writer in writers):
        if found := load(key(SETUP), pytest.fail):
            rates.add(found.prefill_tokens_per_s)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert rates <= {100.0, 200.0}
    assert len(list((home / "profiles").iterdir())) == 1


def _save_often(rate: float) -> None:
    for _ in range(200):
        assert save(replace(PROFILE, prefill_tokens_per_s=rate), print) is not None


def test_the_example_in_the_documentation_is_a_profile() -> None:
    path = Path(__file__).parents[2] / "docs" / "profile-example.json"
    profile = read_profile(path)
    assert dumps(profile) == path.read_text("utf-8")
    assert not profile.quick
