"""The documents: links lead somewhere, commands parse, and the example of a runtime runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND
from tests.cli.test_main import examples, parse
from tests.tiny import tiny_gguf

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

pytestmark = pytest.mark.skipif(not PAGES, reason="the documents are not part of what is installed")


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def links(page: Path) -> list[str]:
    """The targets of a page's links and images that are files of this repository."""
    text = page.read_text("utf-8")
    found = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
    return [a or b for a, b in found if not (a or b).startswith(("http://", "https://"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), link


def test_there_are_links_to_check() -> None:
    assert any(links(page) for page in PAGES)


def test_sources_name_pages_that_exist() -> None:
    folders = ("edgespec", "bench", "export", "models", "runtimes")
    named = {
        name
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.md", file.read_text("utf-8"))
    }
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    for words in examples("\n".join(blocks)):
        parse(words)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 1200


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index)}
    assert {page for page in PAGES if "docs" in page.parts and page != index} <= listed


def test_the_plot_has_the_figures_of_its_table() -> None:
    figures = (ROOT / "docs/reference/figures.md").read_text("utf-8")
    table = figures.partition("## Over plain decoding by category")[2].partition("\n\n| all 80")[0]
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (\d\.\d\d) /", table, re.M))
    plot = (ROOT / "docs/images/speed-up-by-category.svg").read_text("utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot)
    assert len(rows) == 14
    assert {name: texts[texts.index(name) + 1] for name in rows} == rows


def test_the_examples_of_threads_run(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to/use-from-threads.md").read_text("utf-8")
    program = "".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    model = tiny_gguf(tmp_path / "a.gguf", "llama")
    assert "smollm2-135m-instruct" in program
    program = program.replace("smollm2-135m-instruct", model.as_posix())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_the_example_of_a_runtime_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/how-to/add-a-runtime.md").read_text("utf-8")
    module = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[0]
    entries = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"', text, re.M)
    [(group, name, value)] = entries
    (tmp_path / "edgespec_embedding.py").write_text(module, "utf-8")
    information = tmp_path / "edgespec_embedding-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: edgespec-embedding\nVersion: 1\n", "utf-8")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n", "utf-8")
    model = tiny_gguf(tmp_path / "a.gguf", "llama")
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*COMMAND, "generate", str(model), "--runtime", name, "--raw", "-p", "Hello", "--max-tokens", "8"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"on {name} cpu" in done.stderr
