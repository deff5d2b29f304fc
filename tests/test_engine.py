"""The Python interface: an engine opened from a model's name or file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import edgespec
from edgespec import Completion, Engine, UserError, kernels
from edgespec.config import EngineConfig
from edgespec.core.latency import LatencyModel
from edgespec.device.machine import physical_cores
from edgespec.device.profile import Profile
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.stores import ngram_store
from edgespec.export.pipeline import export
from edgespec.export.recipe import Recipe
from edgespec.loading import allowed_places, load
from edgespec.local_model import find
from edgespec.models import store
from edgespec.progress import silent
from edgespec.runtimes.onnx.providers import PROVIDERS
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.export.gguf_files import replace_bytes
from tests.hf_folder import safetensors_folder
from tests.tiny import tiny_gguf


@pytest.fixture(scope="module", autouse=True)
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One EDGESPEC_HOME for the module, so that its models are built once."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPEC_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def engine(smollm2: Path, module_home: Path) -> Iterator[Engine]:
    with Engine.open(smollm2, runtime="onnx", context=512) as engine:
        yield engine


def test_the_readmes_words(smollm2: Path, module_home: Path) -> None:
    """By its name in the catalogue, built beside the download."""
    folder = module_home / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    shutil.copyfile(smollm2, folder / smollm2.name)
    engine = edgespec.Engine.open("SmolLM2-135M-Instruct")
    answer = engine.generate("Name the capital of Italy.", max_tokens=16)
    engine.close()
    assert "Rome" in answer.text
    built = [path.name for path in folder.iterdir() if path.is_dir()]
    assert len(built) == 1
    assert built[0].startswith(smollm2.stem[:48])
    shutil.rmtree(folder)


def test_a_users_own_file_is_built_in_the_cache(engine: Engine, smollm2: Path) -> None:
    built = list((store.cache_dir() / "onnx").iterdir())
    assert any(path.name.startswith(smollm2.stem[:48]) for path in built)
    assert engine.info.name == smollm2.stem
    assert (engine.info.runtime, engine.info.device, engine.info.context) == ("onnx", "cpu", 512)
    assert engine.info.pass_sizes


def test_a_completion(engine: Engine) -> None:
    found = engine.generate("1 2 3 4 5 6 7", chat=False, max_tokens=12)
    assert isinstance(found, Completion)
    assert found.text == " 8 9 10 11 1"  # the ids of tests/export/test_decoder.py
    assert found.token_ids == [216, 40, 216, 41, 216, 33, 32, 216, 33, 33, 216, 33]
    assert found.finish_reason == "length"
    statistics = found.statistics
    assert (statistics.generated_tokens, statistics.runtime) == (12, "onnx")
    assert statistics.exact
    assert statistics.prompt_tokens > 6


def test_an_answer_that_ends(engine: Engine) -> None:
    found = engine.generate("What is 2 + 2? Answer with one number.", max_tokens=100)
    assert found.finish_reason == "stop"
    assert found.statistics.generated_tokens == len(found.token_ids) < 100
    assert "<|im_end|>" not in found.text
    tokenizer = engine.tokenizer
    assert found.token_ids[-1] in tokenizer.stop_tokens
    assert tokenizer.decode(found.token_ids[:-1]) == found.text


def test_streaming_gives_the_same_text(engine: Engine) -> None:
    whole = engine.generate("Name three colours.", max_tokens=24)
    pieces = engine.generate("Name three colours.", max_tokens=24, stream=True)
    assert not isinstance(pieces, Completion)
    first = next(pieces)
    rest = list(pieces)
    assert len(rest) > 2
    assert first + "".join(rest) == whole.text


def test_chat_and_completion_differ(engine: Engine) -> None:
    assert engine.can_chat
    chat, raw = (engine.generate("The sky is", chat=chat, max_tokens=8) for chat in (True, False))
    assert chat.text != raw.text
    assert chat.statistics.prompt_tokens > raw.statistics.prompt_tokens + 5
    assert engine.generate("The sky is", max_tokens=8).token_ids == chat.token_ids


def test_a_system_message_counts(engine: Engine) -> None:
    plain = engine.generate("Hello!", max_tokens=16)
    pirate = engine.generate("Hello!", system="You are a pirate. Say arr.", max_tokens=16)
    assert pirate.statistics.prompt_tokens != plain.statistics.prompt_tokens


def test_seeds(engine: Engine) -> None:
    def sampled(seed: int) -> list[int]:
        return engine.generate("A story:", max_tokens=16, temperature=1.0, seed=seed).token_ids

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_no_tokens_are_an_answer(engine: Engine) -> None:
    found = engine.generate("Hello!", max_tokens=0)
    assert (found.text, found.token_ids, found.finish_reason) == ("", [], "length")


def test_sessions_of_one_engine(engine: Engine) -> None:
    first, second = engine.session(), engine.session()
    alone = "".join(engine.session().chat("Name a fruit.", max_tokens=8))
    assert "".join(first.chat("Name a fruit.", max_tokens=8)) == alone
    "".join(second.chat("Count to three.", max_tokens=8))
    "".join(first.chat("And another.", max_tokens=8))
    assert [m["role"] for m in first.messages] == ["user", "assistant"] * 2
    assert len(second.messages) == 2


@pytest.mark.parametrize("prompt", ["", " ", "x" * 600, "\0", "👩‍👩‍👧"])
def test_odd_prompts_are_answered(engine: Engine, prompt: str) -> None:
    assert engine.generate(prompt, max_tokens=2).statistics.generated_tokens > 0


def test_a_prompt_longer_than_the_context_is_a_user_error(engine: Engine) -> None:
    with pytest.raises(UserError, match="context holds 512"):
        engine.generate("word " * 600)
    assert engine.generate("1 2 3", chat=False, max_tokens=2).token_ids  # and harms nothing


def test_a_negative_limit_is_a_user_error(engine: Engine) -> None:
    with pytest.raises(UserError, match="max_tokens is -1"):
        engine.generate("Hello!", max_tokens=-1)


def test_drafting_changes_nothing(engine: Engine, smollm2: Path) -> None:
    prompt = "Repeat: red, green, blue, red, green, blue, red, green, blue"
    with Engine.open(smollm2, runtime="onnx", context=512, draft="none") as plain:
        expected = plain.generate(prompt, max_tokens=40)
    found = engine.generate(prompt, max_tokens=40)
    assert found.token_ids == expected.token_ids
    assert (found.statistics.drafter, expected.statistics.drafter) == ("suffix+ngram-cache", "none")
    assert expected.statistics.drafted == 0


class Always(LatencyModel):
    """Passes that take so long whatever they take, so that a cheaper draft always pays."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.each = seconds

    def seconds(self, size: int, length: int = 0) -> float:
        return self.each


def drafting(engine: Engine, alone: bool = False) -> Engine:
    """``engine`` with a draft model that pays whatever this machine is doing meanwhile; ``alone``:
    nothing else drafts."""
    scheduler = engine.scheduler
    drafter = scheduler.drafters[-1]
    assert isinstance(drafter, ModelDrafter)
    if alone:
        scheduler.drafters = [drafter]
    scheduler.latency, drafter.follower.costs = Always(1.0), Always(0.01)
    return engine


@pytest.mark.parametrize(
    ("draft", "name"),
    [
        ("suffix", "suffix"),
        ("ngram", "suffix"),
        ("recycling", "recycling"),
        ("hierarchy", "suffix+ngram-cache"),
        ("auto", "suffix+ngram-cache"),
    ],
)
def test_drafters_by_name(tiny: Path, draft: str, name: str) -> None:
    with Engine.open(tiny, draft=draft) as engine:
        assert engine.generate("a b a b a", max_tokens=8).statistics.drafter == name


def test_retrieval_wants_an_index(tiny: Path) -> None:
    with pytest.raises(UserError, match="edgespec index PATH"):
        Engine.open(tiny, draft="retrieval")


def test_what_was_said_serves_the_next_engine_unless_it_is_not_to_be_kept(
    tiny: Path, home: Path
) -> None:
    def answer(**options: bool) -> Completion:
        with Engine.open(tiny, draft="ngram-cache", context=256, **options) as engine:
            engine.scheduler.latency = Always(1.0)
            return engine.generate("hello world", chat=False, max_tokens=100)

    unkept = answer(remember=False)
    assert not ngram_store.cache_files()
    first, second = answer(), answer()
    assert unkept.statistics.accepted == first.statistics.accepted
    assert second.token_ids == first.token_ids
    assert second.statistics.accepted > first.statistics.accepted + 50
    [kept] = ngram_store.cache_files()
    before = kept.path.read_bytes()
    assert answer(remember=False).statistics.accepted == first.statistics.accepted
    ngram_store.switch(False)
    third = answer()
    assert third.statistics.accepted == first.statistics.accepted
    assert kept.path.read_bytes() == before


@pytest.fixture
def exact_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts whose passes give a row the bits that the target's do, though they are of other sizes."""
    monkeypatch.setattr(
        "edgespec.engine.load",
        lambda model, spec, options: load(model, spec, replace(options, exact=True)),
    )


@pytest.mark.usefixtures("exact_drafts")
def test_a_model_as_its_own_draft(engine: Engine, smollm2: Path) -> None:
    """Every token is accepted, and none is another."""
    prompts = ["Name three colours.", "Why is the sea salty?"]
    expected = [engine.generate(prompt, max_tokens=40) for prompt in prompts]
    with drafting(Engine.open(smollm2, context=512, draft=str(smollm2)), alone=True) as drafted:
        for prompt, plain in zip(prompts, expected, strict=True):
            found = drafted.generate(prompt, max_tokens=40)
            assert found.token_ids == plain.token_ids
            statistics = found.statistics
            assert statistics.exact
            assert statistics.drafter == smollm2.stem
            assert statistics.block_efficiency > 3
            assert statistics.acceptance_rate > 0.8
            assert statistics.draft_pass_cost == 1
            assert statistics.draft_passes >= statistics.drafted > 0
            assert statistics.mbsu < 1.01


@pytest.mark.usefixtures("exact_drafts")
def test_sampling_with_a_draft_model(engine: Engine, smollm2: Path) -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 5}
    with drafting(Engine.open(smollm2, context=512, draft=str(smollm2)), alone=True) as drafted:
        found = drafted.generate("Name three colours.", max_tokens=40, **sampling)
    statistics = found.statistics
    assert statistics.acceptance_rate > 0.9  # p is q, but for padding
    assert statistics.block_efficiency > 3


@pytest.mark.parametrize("runtime", ["onnx", "llama-cpp"])
def test_a_smaller_model_drafts(runtime: str, tmp_path: Path) -> None:
    if runtime == "llama-cpp":
        pytest.importorskip("llama_cpp")
    target = tiny_gguf(tmp_path / "target.gguf", seed=1)
    draft = tiny_gguf(tmp_path / "draft.gguf", "qwen3", layers=1, seed=2, context=128)
    options: dict[str, Any] = {"runtime": runtime, "context": 256, "threads": 1}
    if runtime == "onnx":
        del options["threads"]  # of the process
    with Engine.open(target, draft="none", **options) as engine:
        plain = engine.generate("hello world", max_tokens=250, chat=False).token_ids
    with drafting(Engine.open(target, draft=str(draft), **options)) as engine:
        found = engine.generate("hello world", max_tokens=250, chat=False)
        runtimes = engine.target, engine.draft_model
    model = runtimes[1]
    assert model is not None
    assert (model.info.runtime, model.info.context) == (runtime, 128)
    assert model.info.pass_sizes == (
        tuple(range(1, 17)) if runtime == "onnx" and kernels.library() else ()
    )
    assert found.statistics.drafted > 3
    assert 0 < found.statistics.draft_pass_cost < 1
    if runtime == "onnx":  # llama.cpp's kernels depend on a pass's size
        assert found.token_ids == plain


def test_a_draft_that_onnx_cannot_run_is_given_to_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    draft = replace_bytes(tiny_gguf(tmp_path / "a.gguf", layers=1), "llama", "mamba")
    target = tiny_gguf(tmp_path / "b.gguf", layers=1)
    with pytest.raises(UserError, match=r"llama\.cpp cannot load .*a\.gguf"):
        Engine.open(target, draft=str(draft))


def test_a_vocabulary_with_a_few_names_that_differ_is_the_same(tmp_path: Path, tiny: Path) -> None:
    draft = replace_bytes(tiny_gguf(tmp_path / "a.gguf", layers=1), "<|im_end|>", "<|i_dont|>")
    with Engine.open(tiny, draft=str(draft)) as engine:
        drafter = engine.scheduler.drafters[-1]
        assert isinstance(drafter, ModelDrafter)
        assert drafter.vocabulary.same


def test_closing_closes_both(tiny: Path) -> None:
    engine = Engine.open(tiny, draft=str(tiny))
    closed = []
    for runtime in (engine.target, engine.draft_model):
        assert runtime is not None
        close = runtime.close
        runtime.close = lambda r=runtime, c=close: (closed.append(r), c())  # type: ignore[method-assign, misc]
    engine.close()
    assert closed == [engine.target, engine.draft_model]


def test_a_target_that_does_not_load_closes_its_draft(
    tiny: Path, without_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    monkeypatch.setattr(OnnxRuntime, "close", lambda runtime: closed.append(runtime))
    with pytest.raises(UserError, match="1 to 512"):
        Engine.open(tiny, draft=str(tiny), context=513)
    assert len(closed) == 1


def test_exact_is_kept_or_refused(
    tiny: Path, without_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Auto is what is fastest, unless exactness was asked for."""
    monkeypatch.setattr(
        "edgespec.runtimes.packages.find_spec",
        lambda name: None if name == "ik_llama_cpp" else name,
    )
    model = find(str(tiny), silent)

    def allowed_runtimes(runtime: str, exact: bool | None) -> list[str]:
        config = EngineConfig(str(tiny), runtime=runtime, exact=exact)
        return [place.runtime.name for place in allowed_places(config, model)]

    for exact, allowed in (
        (None, ["onnx", "llama-cpp"]), (False, ["onnx", "llama-cpp"]), (True, ["onnx"])
    ):  # fmt: skip
        assert allowed_runtimes("auto", exact) == allowed
    with pytest.raises(UserError, match="only the onnx runtime is exact"):
        allowed_runtimes("llama-cpp", True)
    monkeypatch.setattr("edgespec.runtimes.onnx.runtime.agreeing_sizes", lambda *_: ())
    monkeypatch.setattr("edgespec.runtimes.onnx.runtime.remembered_sizes", lambda *_: None)
    with Engine.open(tiny, runtime="onnx") as engine:
        assert not engine.info.pass_sizes
    with pytest.raises(UserError, match="no sizes of pass agree bit for bit on cpu here"):
        Engine.open(tiny, runtime="onnx", exact=True)


def test_not_exact_is_not_called_exact(tiny: Path, without_kernels: None) -> None:
    with Engine.open(tiny, exact=False) as engine:
        assert engine.info.pass_sizes == ()
        assert not engine.generate("a", max_tokens=1).statistics.exact


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "runtime": ({"runtime": "tensorrt"}, "no runtime 'tensorrt'"),
    "device": ({"device": "tpu"}, "no device 'tpu'"),
    "no such device": ({"device": "npu", "runtime": "onnx"}, "drives no npu"),
    "provider": ({"provider": "tpu"}, "no provider tpu"),
    "provider of another runtime": ({"provider": "cpu", "runtime": "llama-cpp"}, "--runtime onnx"),
    "drafter": (
        {"draft": "magic"},
        r"no drafter 'magic'; take .*hierarchy or a model .*named 'magic'",
    ),
    "draft file": ({"draft": "absent.gguf"}, "there is no file absent.gguf"),
    "draft folder": ({"draft": "."}, r"\. is a folder"),
    "no threads": ({"threads": 0}, "0 threads"),
    "negative threads": ({"threads": -1}, "-1 threads"),
    "no context": ({"context": 0}, "1 to 512"),
    "negative context": ({"context": -5}, "1 to 512"),
    "large context": ({"context": 513}, "1 to 512"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_cannot_be_opened_is_an_error_of_one_line(tiny: Path, what: str) -> None:
    options, message = ERRORS[what]
    present = set(PROVIDERS["npu"]) & set(onnxruntime.get_available_providers())
    if what == "no such device" and present:
        pytest.skip("this ONNX Runtime drives an NPU")
    with pytest.raises(UserError, match=message) as caught:
        Engine.open(tiny, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smolm2-135m-instruct", "did you mean smollm2-135m-instruct"),
        ("there is no such model", "no model is named"),
        ("nowhere.gguf", "no file nowhere.gguf"),
        ("", "no model is named"),
        (".", "is a folder"),
    ],
)
def test_an_unknown_model_is_an_error_of_one_line(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Engine.open(model)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_an_error_of_one_line(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(UserError, match="does not begin with GGUF"):
        Engine.open(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    with pytest.raises(UserError, match="truncated"):
        Engine.open(tmp_path / "cut.gguf")
    built = [path.name for path in (store.cache_dir() / "onnx").glob("*")]
    assert not [name for name in built if "text" in name or "cut" in name]


def test_an_architecture_without_runtime_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = replace_bytes(tiny_gguf(tmp_path / "a.gguf", layers=1), "llama", "mamba")
    with pytest.raises(UserError, match="architecture 'mamba'"):
        Engine.open(path, runtime="onnx")


def test_a_template_with_an_error_is_found_before_anything_is_built(tmp_path: Path) -> None:
    path = replace_bytes(tiny_gguf(tmp_path / "badly.gguf", layers=1), "{% endfor", "{% endfur")
    with pytest.raises(UserError, match="template") as caught:
        Engine.open(path, runtime="onnx")
    assert "\n" not in str(caught.value)
    assert not list((store.cache_dir() / "onnx").glob("badly*"))


def test_a_vocabulary_larger_than_the_head_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Two tokens of the head fewer than in the tokenizer: the last ones would index past it."""
    from gguf import GGUFReader

    path = tiny_gguf(tmp_path / "a.gguf", layers=1)
    data = bytearray(path.read_bytes())
    rows = int(next(t for t in GGUFReader(path).tensors if t.name == "output.weight").shape[1])
    for name in (b"output.weight", b"token_embd.weight"):
        start = data.index(name) + len(name) + 4 + 8  # after the dimensions and the row's length
        assert int.from_bytes(data[start : start + 8], "little") == rows
        data[start : start + 8] = (rows - 2).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=rf"{rows - 2} rows in token_embd.weight and {rows} in tokenizer"
    ):
        Engine.open(path, runtime="onnx")


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot build .*EDGESPEC_HOME") as caught:
        Engine.open(tiny)
    assert "\n" not in str(caught.value)


def test_two_engines_in_one_process(tiny: Path, tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "other.gguf", "qwen3", seed=4)
    with Engine.open(tiny) as first, Engine.open(other) as second, Engine.open(tiny) as third:
        ids = [e.generate("abc", max_tokens=12).token_ids for e in (first, second, third, first)]
    assert ids[0] == ids[2] == ids[3] != ids[1]


@pytest.mark.skipif(os.cpu_count() == 1, reason="there is no other number of threads to ask for")
def test_another_number_of_threads_is_an_error_that_says_so(tiny: Path) -> None:
    """All models of a process share one pool of threads."""
    with Engine.open(tiny):
        other = 1 if physical_cores() > 1 else 2
        with pytest.raises(UserError, match=f"start another one to use {other}"):
            Engine.open(tiny, threads=other)
        Engine.open(tiny, threads=physical_cores()).close()


def test_progress_is_told(tmp_path: Path) -> None:
    heard: dict[str, tuple[int, int]] = {}

    def listen(what: str, done: int, total: int) -> None:
        heard[what] = (done, total)

    path = tiny_gguf(tmp_path / "a.gguf", seed=77)
    Engine.open(path, progress=listen).close()
    building = "packing" if kernels.library() else "building"
    assert {"hashing a.gguf", building, "loading the model"} <= heard.keys()
    assert all(done == total for done, total in heard.values())


def test_passes_are_timed_once_and_a_corrupt_profile_is_told_and_made_anew(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profile, "steady", True)  # whatever else this machine is doing
    heard: list[str] = []
    notices: list[str] = []

    def opened(**options: Any) -> bool:
        heard.clear()
        Engine.open(
            tiny, progress=lambda what, *_: heard.append(what), notice=notices.append, **options
        ).close()
        return any(what.startswith("timing passes") for what in heard)

    assert not opened(draft="none"), "there is nothing to choose"
    assert opened()
    assert not opened()
    assert opened(exact=False), "other passes take other times"
    [profile, _] = sorted((home / "profiles").glob("*.json"), key=lambda path: path.stat().st_mtime)
    profile.write_text(profile.read_text()[:100])
    assert notices == []
    assert opened()
    monkeypatch.setattr(Profile, "steady", False)
    profile.unlink()
    assert opened()
    assert opened(), "what was measured at a bad moment is not kept"
    assert all("is not used" in notice and "edgespec tune" in notice for notice in notices)
    assert notices


def test_closing(tiny: Path) -> None:
    engine = Engine.open(tiny)
    engine.generate("a", max_tokens=2)
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError), Engine.open(tiny):
        raise RuntimeError("an error inside closes it too")


def test_llama_cpp(tiny: Path, smollm2: Path) -> None:
    pytest.importorskip("llama_cpp")
    with Engine.open(tiny, runtime="llama-cpp", context=64, threads=1) as engine:
        assert engine.info.runtime == "llama-cpp"
        found = engine.generate("abc", max_tokens=4)
        assert (len(found.token_ids), found.statistics.exact) == (4, False)


def test_importing_is_quick_and_loads_nothing_heavy() -> None:
    heavy = ("numpy", "onnxruntime", "onnx", "tokenizers", "torch", "llama_cpp", "gguf", "rich")
    program = f"import sys, edgespec; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


# -- folders -----------------------------------------------------------------------------------


def test_a_bundle_answers_as_its_source_does(tmp_path: Path, tiny: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the sea is salty and the rivers are not\n" * 50, encoding="utf-8")
    export(tiny, tmp_path / "draft", Recipe(trim_vocab=280, corpus=[corpus]))
    export(tiny, tmp_path / "both", Recipe(drafts=[tmp_path / "draft"]))
    with Engine.open(tiny, draft="none") as engine:
        expected = engine.generate("the sea", max_tokens=30).token_ids
    with drafting(Engine.open(tmp_path / "both")) as engine:
        found = engine.generate("the sea", max_tokens=30)
        assert found.token_ids == expected
        assert found.statistics.drafter == "suffix+ngram-cache+tiny"
        assert found.statistics.drafted > 0
    with Engine.open(tiny, draft=str(tmp_path / "draft")) as engine:
        assert engine.draft_model is not None
        assert engine.draft_model.info.vocab_size == 280
    with pytest.raises(UserError, match="holds only a draft"):
        Engine.open(tmp_path / "draft")
    with open(tmp_path / "both" / "model" / "model.onnx.data", "r+b") as file:
        file.write(b"changed")
    with pytest.raises(UserError, match=r"model/model\.onnx\.data in the bundle"):
        Engine.open(tmp_path / "both")


def test_a_safetensors_folder_answers(tmp_path: Path, tiny: Path) -> None:
    folder = safetensors_folder(tiny, tmp_path / "folder")
    with Engine.open(folder, draft="none") as engine:
        assert engine.info.architecture == "llama"
        assert engine.generate("the sea", max_tokens=10).token_ids
    with pytest.raises(UserError, match="--format gguf"):
        Engine.open(folder, runtime="llama-cpp")


def test_a_folder_of_something_else_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without bundle\.json or config\.json"):
        Engine.open(tmp_path)


def test_memory_that_cannot_be_predicted_is_reported(tmp_path: Path) -> None:
    """The warning that memory is short cannot come then; it used to be left out silently."""
    path = tiny_gguf(tmp_path / "odd.gguf", layers=1)
    data = path.read_bytes()
    key = b"llama.feed_forward_length"
    at = data.index(key) + len(key) + 4  # after the value's type
    path.write_bytes(data[:at] + (0).to_bytes(4, "little") + data[at + 4 :])
    notices: list[str] = []
    try:
        with Engine.open(path, planned=lambda plan: None, notice=notices.append, draft="none"):
            pass
    except UserError:
        pass  # whether a runtime takes it is its own affair
    assert any("cannot be predicted" in n and "feed_forward_length = 0" in n for n in notices)
