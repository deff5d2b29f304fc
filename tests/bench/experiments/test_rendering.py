from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgespec.bench.experiments import rendering
from tests.tiny import tiny_gguf

pytest.importorskip("transformers", reason="compares with transformers: pip install .[torch]")

CHAT = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"


def test_a_table_and_what_was_not_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_TURNS", (2, 4))
    monkeypatch.setattr(rendering, "_LIMIT", 1e9)  # no timings in tests
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "plain.jinja").write_text(CHAT, encoding="utf-8")
    (folder / "refuses.jinja").write_text("{{ raise_exception('no talk') }}", encoding="utf-8")
    model, figures = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "figures.json"
    command = [str(model), "--templates", str(folder), "--json", str(figures)]
    result = CliRunner().invoke(rendering.main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "| plain | " in result.stdout
    assert "- refuses: " in result.stdout
    found = json.loads(figures.read_text(encoding="utf-8"))["figures"]
    assert len(found["plain"]) == 2
    assert "no talk" in found["refuses"]
    monkeypatch.setattr(rendering, "_LIMIT", 0)
    result = CliRunner().invoke(rendering.main, command)
    assert result.exit_code == 2
    assert "plain" in result.stderr
