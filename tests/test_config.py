"""One configuration for all who open a model."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest

from edgespec import Engine, EngineConfig
from edgespec.config import Options, configure
from tests.tiny import tiny_gguf


def test_keywords_are_the_configurations_fields() -> None:
    hints = get_type_hints(EngineConfig)
    assert set(hints) == {field.name for field in fields(EngineConfig)}
    assert get_type_hints(Options) == {n: hint for n, hint in hints.items() if n != "model"}


def test_keywords_and_a_configuration_open_the_same(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    config = EngineConfig(str(path), runtime="onnx", draft="suffix", context=128, remember=False)
    by_words = Engine.plan(path, runtime="onnx", draft="suffix", context=128, remember=False)
    assert Engine.plan(config) == by_words
    with Engine.open(config) as engine:
        assert (engine.info.context, engine.scheduler.name) == (128, "suffix")
    with pytest.raises(FrozenInstanceError):
        cast(Any, config).context = 1


def test_options_beside_a_configuration_and_unknown_ones_are_mistakes() -> None:
    with pytest.raises(TypeError, match="context: put the options into the EngineConfig"):
        configure(EngineConfig("m"), context=1)
    with pytest.raises(TypeError, match="no option contxt"):
        configure("m", **cast(Any, {"contxt": 1}))
