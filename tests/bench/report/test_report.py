from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgespec.bench.records.results import Results, System
from edgespec.bench.report import metrics
from edgespec.bench.report.report import write_report
from edgespec.errors import UserError
from tests.bench.results import simulated

pytest.importorskip("matplotlib")


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.ids, self.links = Counter[str](), list[str](), list[str]()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(str(value))
            self.links += re.findall(r"url\(([^)]*)\)", str(value))
            if name in ("href", "xlink:href", "src"):
                self.links.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(results: Results, folder: Path) -> tuple[str, str]:
    """The page and the Markdown."""
    write_report(results, folder)
    html, markdown = ((folder / f"report.{end}").read_text("utf-8") for end in ("html", "md"))
    return html, markdown


def test_a_picture_stands_alone(run: Results, tmp_path: Path) -> None:
    write_report(run, tmp_path)
    text = (tmp_path / "rates.svg").read_text("utf-8")
    drawn = ElementTree.fromstring(text)  # which refuses names without their space
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used
    assert used <= set(re.findall(r"(--\w+):", text))
    for name in run.systems:
        assert name.split()[-1] in "".join(drawn.itertext())


@pytest.fixture(scope="module")
def run() -> Results:
    return simulated(prompts=6)


@pytest.fixture(scope="module")
def reports(run: Results, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return written(run, tmp_path_factory.mktemp("report"))


def section(markdown: str, heading: str) -> str:
    return markdown.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_the_page_needs_nothing_but_itself(reports: tuple[str, str]) -> None:
    page = Page(reports[0])
    assert not re.findall(r"https?://|//\w|@import|data:", reports[0])
    assert not {"script", "link", "img", "iframe", "object", "foreignobject"} & page.tags.keys()
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert {link.strip("#") for link in page.links} <= set(page.ids)
    assert all(link.startswith("#") for link in page.links)


def test_every_picture_is_there_in_the_pages_colours(reports: tuple[str, str]) -> None:
    page = Page(reports[0])
    assert page.tags["svg"] == page.tags["figure"] == (1 + 3) + 7
    assert "Not drawn" not in page.text
    used = set(re.findall(r"var\((--\w+)\)", reports[0]))
    assert used >= {"--ink", "--grid", "--paper", "--series0", "--series1"}
    for defined in (":root {", "(prefers-color-scheme: dark)"):
        rules = reports[0].split(defined)[1].split("}")[0]
        assert all(f"{name}:" in rules for name in used)
    pictures = "".join(re.findall(r"<svg.*?</svg>", reports[0], re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", pictures)
    assert "<text" in pictures


def test_a_run_is_drawn_the_same_again(
    run: Results, reports: tuple[str, str], tmp_path: Path
) -> None:
    assert written(run, tmp_path) == reports


def test_tables_hold_the_measures(run: Results, reports: tuple[str, str]) -> None:
    rates = section(reports[1], "Decode tokens/s")
    assert "|  | all | chat | code | summarizing |" in rates
    row = next(line for line in rates.splitlines() if line.startswith("| edgespec suffix |"))
    for cell, category in zip(row.split("|")[2:], [None, *metrics.categories(run)], strict=False):
        found = metrics.measure(run, "edgespec suffix", category).rate
        assert found is not None
        told = [float(number) for number in re.findall(r"[\d.]+", cell)]
        assert told == pytest.approx([found.value, found.low, found.high], rel=5e-3)
    assert "11.020 (-1.6%)" in section(reports[1], "What was run")
    assert "21.0 GB/s" in section(reports[1], "Machine, model and settings")
    assert section(reports[1], "What went wrong").strip() == "- Nothing."


def test_every_system_is_held_against_the_others(run: Results, reports: tuple[str, str]) -> None:
    short = section(reports[1], "In short")
    assert "edgespec suffix is the fastest of edgespec here." in short
    header = next(line for line in short.splitlines() if line.startswith("|  |"))
    names = [name.strip() for name in header.split("|")[2:-1]]
    assert names == ["edgespec none", "llama.cpp plain", "llama.cpp draft", "transformers plain"]
    for own in ("edgespec none", "edgespec suffix", "edgespec model"):
        row = next(line for line in short.splitlines() if line.startswith(f"| {own} |"))
        for name, cell in zip(names, row.split("|")[2:], strict=False):
            found = metrics.ratio(run, own, name)
            assert found is not None
            told = [float(number) for number in re.findall(r"[\d.]+", cell)]
            held = [] if name == own else [found.value, found.low, found.high]
            assert told == pytest.approx(held, rel=5e-3)


def test_a_single_category_is_not_told_twice(run: Results, tmp_path: Path) -> None:
    chat = replace(run, answers=[a for a in run.answers if a.category == "chat"])
    html, markdown = written(chat, tmp_path)
    assert "chat" not in section(markdown, "Where edgespec loses")
    assert "chat" not in section(markdown, "Decode tokens/s")
    assert "<h3>Decode tokens/s</h3>" in html
    assert "chat</figcaption>" not in html


def test_what_is_absent_is_said(run: Results, tmp_path: Path) -> None:
    bare = [
        replace(
            a, energy_j=None, by_rows={}, draft_s=None, passes=None, drafted=None, by_drafter={}
        )
        for a in run.answers
    ]
    systems = {
        n: replace(s, memory=[], failures=["prompt 3: hung"]) for n, s in run.systems.items()
    }
    energy = {"reader": None, "why_not": "rapl: no counter was found\nbattery: there is none."}
    poor = replace(run, answers=bare, systems=systems, energy=energy, curves={}, profile=None)
    html, markdown = written(poor, tmp_path)
    page = Page(html)
    assert page.tags["svg"] == (1 + 3) + 1
    no_energy = "Energy was not measured: rapl: no counter was found; battery: there is none."
    assert no_energy in page.text
    assert no_energy in markdown
    for why in ("No pass was profiled", "No pass was timed", "No system's memory was watched"):
        assert why in page.text
    assert "- transformers plain: prompt 3: hung" in section(markdown, "What went wrong")
    assert section(markdown, "Speculation").strip() == "No system reported what it drafted."


def test_little_or_nothing_measured_is_reported_too(run: Results, tmp_path: Path) -> None:
    """As after Ctrl-C."""
    html, markdown = written(replace(run, answers=[], curves={}, profile=None), tmp_path)
    assert "too few answers" in section(markdown, "In short").lower()
    assert "In nothing that was measured here." in markdown
    assert "No system gave an answer" in html
    for count in (1, 2, 7):
        _, markdown = written(replace(run, answers=run.answers[:count]), tmp_path)
        assert not re.search(r"\binf|\bnan", markdown)
        assert f"of {-(-count // 6)} answers are missing" in section(
            markdown, "What went wrong"
        ) or (count == 1)


def test_where_edgespec_loses_is_said(run: Results, tmp_path: Path) -> None:
    lost = section(written(run, tmp_path)[1], "Where edgespec loses")
    assert re.search(
        r"edgespec model decodes slower than edgespec none\. Times as fast: .*chat 0\.", lost
    )
    assert "Less memory (GB): llama.cpp plain 1.10" in lost
    assert "llama.cpp draft decodes" not in lost
    slower = {n: 0.6 for n in run.systems if n.startswith("edgespec")} | {
        "transformers plain": -0.7
    }
    behind = simulated(prompts=6, slower=slower)
    lost = section(written(behind, tmp_path)[1], "Where edgespec loses")
    ahead = (
        "llama.cpp plain decodes faster than the best of edgespec. Times as fast: all categories"
    )
    assert ahead in lost
    assert "transformers plain decodes faster" in lost
    assert "It runs other weights: bfloat16." in lost
    assert "Sooner (s to the first token)" in lost


def test_a_noisy_machine_is_said_first(tmp_path: Path) -> None:
    html, markdown = written(simulated(prompts=5, rounds=2, noise=0.6), tmp_path)
    assert section(markdown, "In short").strip().startswith("**The machine was too noisy")
    assert '<p class="warning">The machine was too noisy' in html


def test_text_from_outside_is_text(run: Results, tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> | `x` [a](http://b) $\\frac{1} --> <!-- ]]> \x00\n# &lt; 𝔘 id="m1"'
    systems = {n: replace(s, version=evil, weights=evil) for n, s in run.systems.items()}
    named = replace(systems.pop("llama.cpp draft"), name=evil, failures=[evil])
    answers = [
        replace(a, category=evil if a.category == "code" else a.category)
        for a in run.answers
        if a.system != "llama.cpp draft"
    ]
    answers += [replace(a, system=evil) for a in run.answers if a.system == "edgespec suffix"]
    html, markdown = written(
        replace(
            run,
            model=run.model | {"name": evil},
            settings=run.settings | {"command": evil},
            machine=run.machine | {"cpu": evil},
            energy=run.energy | {"reader": evil},
            systems=systems | {evil: named},
            answers=answers,
            curves={evil: run.curves["onnx"]},
            profile={"operators": [{"name": evil, "count": 1, "seconds": 0.1}], "pass_s": 0.1},
        ),
        tmp_path,
    )
    page = Page(html)
    assert not {"script", "a"} & page.tags.keys()
    assert '<script>alert("1")</script>' in page.text
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[a|(?<!\\)`x", markdown)
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    for first, line in pairwise(tables):
        if ":--" in line:
            assert len(re.findall(r"(?<!\\)\|", first)) == len(re.findall(r"(?<!\\)\|", line))


def test_without_matplotlib_there_are_tables_and_a_hint(
    run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install "edgespec\[bench\]"'):
        write_report(run, tmp_path)
    assert "## Decode tokens/s" in (tmp_path / "report.md").read_text("utf-8")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    empty = Results(
        {}, {"temperature": 0}, {}, {"reader": None}, {"x": System("x", "edgespec")}, []
    )
    with pytest.raises(UserError, match=r"cannot write .*report\.md: No such"):
        write_report(empty, tmp_path / "absent")
