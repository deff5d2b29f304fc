"""What every test may use: the real model that the tests run on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec.drafting.stores import ngram_store
from edgespec.export import build_onnx
from edgespec.models import store
from edgespec.models.catalogue import load_catalogue

# Read before any test sets EDGESPEC_HOME. Outside the clone, so that it is downloaded once.
TEST_MODELS = Path(os.environ.get("EDGESPEC_TEST_MODELS") or store.cache_dir() / "test-models")

# A shell without job control starts what it puts in the background with SIGINT ignored, and so
# would be every child that these tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that every EDGESPEC_HOME of the tests is in: what the user has is not for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESPEC_HOME", str(tmp_path_factory.mktemp("edgespec-home")))
        yield tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def nothing_learnt(homes: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test's models said is no other's: drafts, and so statistics, would depend on it.

    ``monkeypatch``, so that EDGESPEC_HOME is still the test's own when this ends.
    """
    yield
    learnt = ngram_store.directory()
    if homes in learnt.parents:
        shutil.rmtree(learnt, ignore_errors=True)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct (Q4_1, 98 MB), pulled by the store itself the first time."""
    return store.pull(load_catalogue()["smollm2-135m-instruct"], directory=TEST_MODELS)


@pytest.fixture(scope="session")
def smollm2_onnx(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``smollm2`` built for the onnx runtime."""
    return build_onnx(smollm2, tmp_path_factory.mktemp("built") / "smollm2")


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernels' library had not been built."""
    monkeypatch.setattr("edgespec.kernels.native._load", lambda: "not built, for a test")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGESPEC_HOME of the test's own."""
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
