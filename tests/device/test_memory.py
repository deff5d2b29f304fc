from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.bench.child import in_child
from edgespec.bench.experiments.memory import Case, fill
from edgespec.core.runtime_spec import ModelDimensions, RunConfiguration
from edgespec.device.memory import Memory, predict
from edgespec.export import dimensions
from edgespec.export.dimensions import dimensions_of
from edgespec.local_model import give_back_memory
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes import get

VOCABULARY = 49152


@pytest.fixture(scope="module")
def model(smollm2: Path) -> ModelDimensions:
    return dimensions_of(GGUFFile(smollm2), VOCABULARY)


def test_caches_are_what_their_numbers_take(model: ModelDimensions) -> None:
    for runtime, bytes_each in (("onnx", 2 if model.kernel_bytes else 4), ("llama-cpp", 2)):
        sizes = [
            predict(
                model, RunConfiguration(get(runtime), context, get(runtime).cache_types[0])
            ).cache
            for context in (2048, 4096)
        ]
        assert sizes[1] - sizes[0] == 2048 * model.cache_numbers * bytes_each
    small = predict(model, RunConfiguration(get("llama-cpp"), 2048, "q8_0")).cache
    assert (
        small * 32 * 2
        == predict(model, RunConfiguration(get("llama-cpp"), 2048, "float16")).cache * 34
    )


@pytest.mark.parametrize(
    ("features", "copies", "added"),
    [
        ((), 0, 0.0),
        (("avx2", "avx512f"), 0, 0.0),
        (("asimddp",), 1, 0.0),
        (("amx_int8",), 1, 1 / 8),
    ],
)
def test_llama_cpp_keeps_a_tied_embedding_twice_where_it_lays_out_the_head_anew(
    features: tuple[str, ...],
    copies: int,
    added: float,
    smollm2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dimensions, "cpu_features", lambda: features)
    file = GGUFFile(smollm2)
    embedding = file.tensors["token_embd.weight"]
    assert embedding.type == "Q8_0"
    found = dimensions_of(file, VOCABULARY)
    more = copies * embedding.nbytes + int(added * math.prod(embedding.shape))
    assert found.llama_bytes == found.stored_bytes + more
    assert (
        predict(found, RunConfiguration(get("llama-cpp"), 512, "float16")).weights
        == found.llama_bytes
    )
    assert (
        predict(found, RunConfiguration(get("ik-llama-cpp"), 512, "float16")).weights
        == found.stored_bytes
    )


def test_only_what_products_read_is_laid_out_anew(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dimensions, "cpu_features", lambda: ("amx_int8",))
    file = GGUFFile(smollm2)
    embedding = file.tensors["token_embd.weight"]
    file.tensors["output.weight"] = replace(embedding, name="output.weight")
    found = dimensions_of(file, VOCABULARY)
    assert found.llama_bytes == found.stored_bytes + math.prod(embedding.shape) // 8


def test_every_part_counts(model: ModelDimensions) -> None:
    use = RunConfiguration(get("onnx"), 2048, "float32")
    plain = predict(model, use)
    assert plain.total == sum(bytes for _, bytes in plain.components())
    assert plain.generation == plain.total - plain.weights
    assert predict(model, use, tables=False).tables == 0 < plain.tables
    assert predict(model, replace(use, rows=2)).logits < plain.logits
    drafted = predict(model, use, (model, replace(use, rows=2)))
    assert drafted.draft_weights == plain.weights
    assert drafted.total > plain.total + plain.weights + plain.cache
    other = predict(
        model, use, (model, RunConfiguration(get("llama-cpp"), 2048, "float16", rows=2))
    )
    assert other.python > drafted.python  # two runtimes


def test_building_is_counted_where_nothing_is_built(model: ModelDimensions) -> None:
    def total(source: ModelDimensions, built: bool) -> Memory:
        return predict(source, RunConfiguration(get("onnx"), 256, "float32", built=built))

    large = replace(model, stored_bytes=10 * model.stored_bytes)  # as bfloat16 is
    assert total(large, False).total > large.stored_bytes + total(large, False).python
    assert total(large, False).total > total(large, True).total


def test_small_heads_have_no_q8_cache(model: ModelDimensions) -> None:
    assert get("llama-cpp").cache_types_of(model) == ("float16", "q8_0")
    assert get("llama-cpp").cache_types_of(replace(model, head_dim=80)) == ("float16",)


def _check(case: Case) -> None:
    in_child(fill, replace(case, context=128))  # built and probed, which is not use
    measured, predicted = in_child(fill, case).generated, case.plan().memory.total
    assert predicted == pytest.approx(measured, rel=0.08)


@pytest.fixture
def installed(smollm2: Path, model_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EDGESPEC_HOME", str(model_home))
    return str(smollm2)


@pytest.fixture(scope="session")
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_the_prediction_holds_on_onnx(installed: str) -> None:
    _check(Case(installed, "onnx", 512, "hierarchy", True, None))


def test_the_prediction_holds_on_llama_cpp(installed: str) -> None:
    pytest.importorskip("llama_cpp")
    _check(Case(installed, "llama-cpp", 512, "hierarchy", True, None))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnx", "llama-cpp"])
@pytest.mark.parametrize("context", [2048, 8192])
@pytest.mark.parametrize("drafted", [False, True])
def test_the_prediction_holds(runtime: str, context: int, drafted: bool, installed: str) -> None:
    pytest.importorskip("llama_cpp" if runtime == "llama-cpp" else "onnxruntime")
    _check(Case(installed, runtime, context, installed if drafted else "none", True, None))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as /proc shows it")
def test_onnx_caches_grow_as_they_fill(smollm2_onnx: Path) -> None:
    numbers = 30 * 2 * 3 * 64
    for first, then in zip(*in_child(_growth, str(smollm2_onnx)), strict=True):
        assert then == pytest.approx(4 * numbers * first, rel=0.2)


def _growth(folder: str) -> tuple[list[int], list[int]]:
    """Tokens that were added to a cache of 2048, and the resident bytes that came with them."""
    from edgespec.core.decoding import prefill
    from edgespec.runtimes.onnx.runtime import OnnxRuntime

    runtime = OnnxRuntime(Path(folder), context=2048, exact=False)
    added, grown = [], []
    prefill(runtime, [1] * 100)
    for end in (1000, 2000):
        length, before = runtime.length, _resident()
        prefill(runtime, [1] * end)
        added.append(runtime.length - length)
        grown.append(_resident() - before)
    return added, grown


def _resident() -> int:
    give_back_memory()  # or what prompts left in the heap would be taken again, or given back
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
