"""``edgespec index``: indexes the user's files for retrieval drafting."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import click

from edgespec.cli.options import notice
from edgespec.cli.progress import ProgressBar
from edgespec.cli.table import print_table
from edgespec.models.catalogue import DEFAULT_MODEL
from edgespec.units import format_size


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH…", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="MODEL",
    show_default=DEFAULT_MODEL,
    help="The model to index for. The index works with every model that has the same tokenizer.",
)
@click.option(
    "--name", metavar="NAME", help="The name of the index. Default: the name of the first PATH."
)
@click.option("--list", "listed", is_flag=True, help="List and check the indexes.")
@click.option("--remove", metavar="NAME", help="Delete an index.")
def index(
    paths: tuple[Path, ...],
    model: str | None,
    name: str | None,
    listed: bool,
    remove: str | None,
) -> None:
    """Index your files, for faster answers that quote them.

    When the last output tokens occur in an indexed file, the text after them is the draft. The
    answer is the same with and without an index.

    All UTF-8 text in a folder is read, except hidden files and links. Index files again after they
    change. An index contains the text of the files: only you can read it, it stays on this machine,
    and --remove deletes it.

    \b
    Index two folders for a model:
      edgespec index ~/notes ~/src/project --model qwen2.5-coder-1.5b-instruct
    List the indexes:
      edgespec index --list
    """
    if bool(paths) + listed + (remove is not None) != 1:
        raise click.UsageError("Give files or folders to index, or --list, or --remove NAME.")
    if (model or name) and not paths:
        raise click.UsageError("--model and --name are for files or folders to index.")
    if listed:
        _list()
    elif remove is not None:
        from edgespec.drafting.stores import datastore

        datastore.remove(remove)
        click.echo(f"Removed {remove}.")
    else:
        _build(paths, model or DEFAULT_MODEL, name)


def _build(paths: tuple[Path, ...], model: str, name: str | None) -> None:
    from edgespec.drafting.stores import indexing
    from edgespec.local_model import find

    indexing.roots_of(paths)  # reports errors before a model is downloaded
    progress, started = ProgressBar(), monotonic()
    try:
        tokenizer = find(model, progress).tokenizer
        built, skipped = indexing.build(paths, tokenizer, model, name, progress)
    finally:
        progress.stop()
    if skipped:
        notice(indexing.skipped_line(skipped))
    facts, size = built.facts, built.path.stat().st_size
    click.echo(
        f"Indexed {facts.name}: {_counted(facts.files, 'file')} with {format_size(facts.text_bytes)} of text, "
        f"{format_size(size)} on disk, in {monotonic() - started:.0f} s."
    )


def _list() -> None:
    from edgespec.drafting.stores import datastore

    found = datastore.index_paths()
    if not found:
        notice("there are no indexes; `edgespec index PATH…` makes one")
        return
    rows: list[tuple[str, ...]] = [
        ("NAME", "FOR THE TOKENS OF", "FILES", "TEXT", "SIZE", "MADE", "OF")
    ]
    damaged = []
    progress = ProgressBar()
    for done, path in enumerate(found):
        progress("checking", done, len(found))
        try:
            kept = datastore.Datastore(path)
            kept.check()
        except (OSError, ValueError) as error:
            damaged.append(f"{path} is not used: {error}; `edgespec index` builds it again")
            continue
        facts = kept.facts
        text, size = format_size(facts.text_bytes), format_size(path.stat().st_size)
        day, of = facts.created[:10], ", ".join(facts.paths)
        cells = (facts.name, facts.model, f"{facts.files:,}", text, size, day, of)
        rows.append(tuple("".join(c if c.isprintable() else "?" for c in cell) for cell in cells))
    progress.stop()
    print_table(rows)
    for line in damaged:
        notice(line)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
