"""``edgespec cache``: what was learnt from answers, and whether it is."""

from __future__ import annotations

from datetime import datetime

import click

from edgespec.cli.table import print_table
from edgespec.units import format_size


@click.group()
def cache() -> None:
    """See, delete or switch off what edgespec keeps of answers.

    To guess a model's next words better, edgespec counts which of them follow which in its answers. The
    counts are kept on this machine, up to 32 MiB a model, and hold phrases of what models said.
    EDGESPEC_HOME moves the folder.

    \b
    What there is, and where:
      edgespec cache show
    Keep nothing from now on, and delete what there is:
      edgespec cache off
      edgespec cache clear
    """


@cache.command()
def show() -> None:
    """List what is kept: for which models, how much, when used last.

    \b
    Where it lies:
      edgespec cache show | tail -1
    """
    from edgespec.drafting.stores import ngram_store as store  # as below: not needed for help

    rows = [("MODEL", "ENTRIES", "SIZE", "LAST USED")]
    for kept in store.cache_files():
        header, used = kept.header, datetime.fromtimestamp(kept.modified)
        name = (header.name or header.key) if header else f"not readable: {kept.path.name}"
        entries = f"{header.entries:,}" if header else "-"
        rows.append((name, entries, format_size(kept.size), f"{used:%Y-%m-%d %H:%M}"))
    if len(rows) > 1:
        print_table(rows, left=1)
    state = "is kept" if store.enabled() else "is switched off: neither read nor added to"
    click.echo(f"What models say {state}. Folder: {store.directory()}")


@cache.command()
@click.argument("model", required=False)
def clear(model: str | None) -> None:
    """Delete what is kept of a MODEL that `edgespec cache show` names, or of all.

    A chat that is open forgets at its next save what it had read or saved.

    \b
    For example:
      edgespec cache clear smollm2-135m-instruct
    """
    from edgespec.drafting.stores import ngram_store as store

    count = store.clear(model)
    click.echo(f"Deleted {count} cache{'' if count == 1 else 's'}.")


@cache.command()
def off() -> None:
    """Neither read nor keep anything from now on. What is there stays; `clear` deletes it.

    \b
    For example:
      edgespec cache off
    """
    from edgespec.drafting.stores import ngram_store as store

    store.switch(False)
    click.echo("Off: nothing is read or kept, by what is started from now on.")


@cache.command()
def on() -> None:
    """Keep what models say again, as at first.

    \b
    For example:
      edgespec cache on
    """
    from edgespec.drafting.stores import ngram_store as store

    store.switch(True)
    click.echo("On: what models say is kept, by what is started from now on.")
