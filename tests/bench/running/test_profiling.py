from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.bench.running.profiling import profile_pass, read_profile
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer


def test_only_the_last_passes_count() -> None:
    def kernel(ts: int, name: str, dur: int) -> dict[str, object]:
        return {"name": "n_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": name}}

    def run(ts: int, dur: int) -> dict[str, object]:
        return {"name": "model_run", "ts": ts, "dur": dur}

    events = [run(0, 900), kernel(1, "Add", 800)]
    events += [run(1000, 90), kernel(1001, "Add", 20), kernel(1020, "MatMulNBits", 40)]
    events += [run(2000, 110), kernel(2001, "Add", 10), kernel(2020, "MatMulNBits", 60)]
    operators, pass_s = read_profile(events, 2)
    assert [(o["name"], o["count"]) for o in operators] == [("MatMulNBits", 1), ("Add", 1)]
    assert [o["seconds"] for o in operators] == pytest.approx([50e-6, 15e-6])
    assert pass_s == pytest.approx(100e-6)
    with pytest.raises(UserError, match="disk full"):
        read_profile(events, 4)


def test_a_pass_of_smollm2(
    smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    found = profile_pass(smollm2, Tokenizer.from_gguf(GGUFFile(smollm2)), 10e9, 1)
    attention = [o for o in found["operators"] if "Attention" in o["name"]]
    assert [o["count"] for o in attention] == [30]  # one a layer
    assert 0 < sum(o["seconds"] for o in found["operators"]) < 1.5 * found["pass_s"]
    assert found["floor_s"] == found["bytes"] / 10e9
    assert 0.9 < found["bytes"] / smollm2.stat().st_size < 1.2
