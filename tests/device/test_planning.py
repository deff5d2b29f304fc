from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgespec.bench.child import in_child
from edgespec.bench.workloads import own_text
from edgespec.core.runtime_spec import ModelDimensions
from edgespec.device.machine import peak_memory_bytes
from edgespec.device.planning import (
    LEAST_CONTEXT,
    Asked,
    Plan,
    parse_bytes,
    plan,
    show_bytes,
)
from edgespec.engine import Engine
from edgespec.errors import UserError
from edgespec.export.dimensions import dimensions_of
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes import get

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("123456789", 123456789),
        ("512b", 512),
        ("900MiB", 900 << 20),
        ("900 mib", 900 << 20),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 << 29),
        ("64KiB", 1 << 16),
        ("64kb", 64000),
        (" 3 TB ", 3 * 10**12),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.1", "-1", "2 G", "MiB", "1e9", "1,5GiB", "1MiBB", "nan", "٣MiB", "9" * 30, "0MiB"],
)
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UserError, match="write 900MiB, 2GB or plain bytes"):
        parse_bytes(text)


def test_amounts_are_shown_rounded_up() -> None:
    assert [show_bytes(size) for size in (1, MIB, MIB + 1)] == ["1 MiB", "1 MiB", "2 MiB"]


@pytest.fixture(scope="module")
def dimensions(smollm2: Path) -> ModelDimensions:
    return dimensions_of(GGUFFile(smollm2), 49152)


@pytest.fixture(scope="module")
def asked(dimensions: ModelDimensions) -> Asked:
    """All that can be chosen: two runtimes, and a draft model."""
    return Asked(dimensions, [get("onnx"), get("llama-cpp")], 4096, dimensions, 8192)


def _losses(asked: Asked, chosen: Plan) -> list[bool]:
    """What was given up, what is given up first coming last."""
    return [
        chosen.run.context < asked.context,
        chosen.run.cache_type == "q8_0",
        chosen.run.runtime.name != "onnx",
        chosen.draft is None,
    ]


def test_without_a_budget_everything_is_as_asked(asked: Asked) -> None:
    chosen = plan(asked, None)
    assert (chosen.run.runtime.name, chosen.run.context, chosen.run.rows) == ("onnx", 4096, 16)
    assert chosen.draft
    assert chosen.given_up == ()


def test_budgets_are_kept_and_more_memory_gives_up_less(asked: Asked) -> None:
    whole = plan(asked, None)
    least = whole.least
    contexts, losses = [], []
    for budget in range(least, whole.memory.total + whole.reserve + 8 * MIB, 4 * MIB):
        chosen = plan(asked, budget)
        assert chosen.memory.total + chosen.reserve <= budget
        contexts.append(chosen.run.context)
        losses.append(_losses(asked, chosen))
        assert bool(chosen.given_up) == (any(losses[-1]) or chosen.run.rows < 16)
    best = 0
    for context in contexts:
        best = max(best, context)
        assert context >= best / 1.1 - 64  # something else is given up for a tenth more only
    assert contexts[0] == LEAST_CONTEXT
    assert losses == sorted(losses, reverse=True)  # dearer losses end first
    assert losses[0] == [True] * 4
    assert losses[-1] == [False] * 4
    assert [False, False, False, True] in losses  # the draft model is the first of them to go


def test_the_smallest_budget_is_the_smallest(asked: Asked) -> None:
    least = plan(asked, None).least
    assert plan(asked, least).run.context == LEAST_CONTEXT
    with pytest.raises(UserError, match=rf"smallest --memory-budget .* is {show_bytes(least)}"):
        plan(asked, least - 1)
    shown = parse_bytes(show_bytes(least))
    assert plan(asked, shown).run.context >= LEAST_CONTEXT


def test_only_the_runtime_that_was_asked_for_is_taken(asked: Asked) -> None:
    onnx = replace(asked, runtimes=[get("onnx")])
    for budget in range(plan(onnx, None).least, 800 * MIB, 16 * MIB):
        assert plan(onnx, budget).run.runtime.name == "onnx"
    assert plan(onnx, None).least > plan(asked, None).least


def test_rows_are_given_up_before_a_draft_model(asked: Asked) -> None:
    onnx = replace(asked, runtimes=[get("onnx")])
    whole = plan(onnx, None)
    chosen = plan(onnx, whole.memory.total + whole.reserve - 1)
    assert (chosen.run.rows, chosen.draft is not None) == (8, True)
    assert "more than 8 rows" in chosen.given_up[0]


def test_a_short_context_is_not_made_longer(asked: Asked) -> None:
    short = replace(asked, context=100)
    assert plan(short, plan(short, None).least).run.context == 100


def test_contexts_are_the_largest_that_fit(dimensions: ModelDimensions) -> None:
    asked = Asked(dimensions, [get("onnx")], 8192)
    whole = plan(asked, None)
    for budget in range(whole.least, whole.memory.total + whole.reserve, 25 * MIB):
        chosen = plan(asked, budget)
        larger = plan(replace(asked, context=chosen.run.context + 64), None)
        assert larger.memory.total + larger.reserve > budget - 3 * MIB  # what fewer rows would save


# In real use


@dataclass(frozen=True)
class Used:
    """What a process came to."""

    peak: int
    runtime: str
    context: int
    cache_type: str
    answers: int
    generated: int
    counted: int


def _use(model: str, runtime: str, budget: int, turns: int, tokens: int) -> Used:
    """Open ``model`` within ``budget`` and say ``tokens`` in each of some ``turns``."""
    plans: list[Plan] = []
    said = counted = answers = 0
    with Engine.open(model, runtime=runtime, memory_budget=budget, planned=plans.append) as engine:
        session, text = engine.session(ignore_stop=True), own_text()
        for turn in range(turns):
            question = f"{turn}: {text[60 * turn : 60 * turn + 60]}"
            for _ in session.chat(question, max_tokens=tokens):
                pass
            answers += 1
            stats = session.statistics
            said += len(session.token_ids)
            counted += stats.generated_tokens
            assert stats.accepted <= stats.drafted
            assert stats.target_passes + stats.accepted == stats.generated_tokens
            assert stats.peak_memory_bytes == peak_memory_bytes()
        use = plans[0].run
        assert engine.info.context == use.context
        assert engine.info.max_rows == use.rows
    return Used(
        peak_memory_bytes(), use.runtime.name, use.context, use.cache_type, answers, said, counted
    )


@pytest.fixture(scope="module")
def model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SmolLM2, built where this module's processes look for it."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("EDGESPEC_HOME")
    os.environ["EDGESPEC_HOME"] = str(home)
    yield str(smollm2)
    if before is None:
        del os.environ["EDGESPEC_HOME"]
    else:
        os.environ["EDGESPEC_HOME"] = before


def _sweep(model: str, runtime: str, steps: int) -> None:
    whole = Engine.plan(model, runtime=runtime, context=1024)
    most = whole.memory.total + whole.reserve
    for step in range(steps):
        budget = whole.least + (most - whole.least) * step // max(1, steps - 1)
        # answers as long as the context allows, until that has overflowed more than once
        used = in_child(_use, model, runtime, budget, 4, 1 << 20)
        assert used.peak <= budget, used
        assert used.generated > used.context


def test_the_least_budget_is_kept_though_the_model_must_be_built(model: str) -> None:
    _sweep(model, "onnx", 1)


def test_the_least_budget_is_kept_on_llama_cpp(model: str) -> None:
    pytest.importorskip("llama_cpp")
    _sweep(model, "llama-cpp", 1)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "llama-cpp"])
def test_budgets_from_the_least_to_plenty_are_kept(runtime: str, model: str) -> None:
    pytest.importorskip("llama_cpp" if runtime == "llama-cpp" else "onnxruntime")
    _sweep(model, runtime, 5)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "llama-cpp"])
def test_200_turns_stay_within_a_tight_budget(runtime: str, model: str) -> None:
    pytest.importorskip("llama_cpp" if runtime == "llama-cpp" else "onnxruntime")
    in_child(_use, model, runtime, 1 << 40, 1, 4)  # built
    budget = Engine.plan(model, runtime=runtime).least + 8 * MIB
    used = in_child(_use, model, runtime, budget, 200, 8)
    assert used.peak <= budget, used
    assert used.answers == 200
    assert used.generated == used.counted == 200 * 8
