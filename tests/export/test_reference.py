"""The PyTorch reference satisfies the contract of runtimes. Its mathematics is tested against llama.cpp,
an independent implementation, in ``test_llama_cpp.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.runtime import Runtime
from edgespec.errors import UserError
from edgespec.export.sources.trimmed import TrimmedHead
from tests.runtimes.contract import TOKENS, RuntimeContract
from tests.tiny import TINY, tiny_gguf

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("architecture", [*TINY, "mistral"], scope="class")
class TestTiny(RuntimeContract):
    tolerance = 1e-3

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, architecture: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Runtime]:
        from edgespec.export.reference import TorchRuntime

        # Sliding layers see less than the tests' length.
        path = tmp_path_factory.mktemp("tiny") / "a.gguf"
        if architecture == "mistral":
            tiny_gguf(path, window_everywhere=8)
        else:
            tiny_gguf(path, architecture, window=8)
        runtime = TorchRuntime(path, context=64)
        yield runtime
        runtime.close()


def test_a_safetensors_folder_gives_what_the_gguf_file_gives(tmp_path: Path) -> None:
    from edgespec.export.reference import TorchRuntime, load_model
    from edgespec.models.gguf import GGUFFile

    path = tiny_gguf(tmp_path / "a.gguf", "qwen3")
    load_model(GGUFFile(path)).save_pretrained(tmp_path / "folder")
    expected = TorchRuntime(path).forward(TOKENS)
    np.testing.assert_array_equal(TorchRuntime(tmp_path / "folder").forward(TOKENS), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_trimmed_head_gives_its_tokens_columns(tmp_path: Path, tied: bool) -> None:
    from edgespec.export.reference import TorchRuntime
    from edgespec.models.gguf import GGUFFile

    source = GGUFFile(tiny_gguf(tmp_path / "a.gguf", tied=tied))
    kept = range(1, 290, 3)
    trimmed = TorchRuntime(TrimmedHead(source, kept))
    assert trimmed.info.token_ids == tuple(kept)
    assert trimmed.info.vocab_size == len(kept)
    found, expected = trimmed.forward(TOKENS), TorchRuntime(source).forward(TOKENS)
    np.testing.assert_allclose(found, expected[:, list(kept)], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("llama", "mamba"), "architecture"),
        (("rope.freq_base", "rope.freq_bass"), None),
        (("attn_q.weight", "attn_x.weight"), "blk.0.attn_x.weight"),
        (("llama.block_count", "llama.block_cOunt"), "llama.block_count"),
    ],
)
def test_what_it_cannot_run_is_a_user_error(
    tmp_path: Path, change: tuple[str, str], message: str | None
) -> None:
    from edgespec.export.reference import TorchRuntime

    path = tiny_gguf(tmp_path / "a.gguf", layers=1)
    old, new = (text.encode() for text in change)
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))
    if message is None:
        TorchRuntime(path)
    else:
        with pytest.raises(UserError, match=message):
            TorchRuntime(path)
