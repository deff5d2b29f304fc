"""``edgespec cache``: the n-gram cache of earlier answers."""

from __future__ import annotations

from datetime import datetime

import click

from edgespec.cli.table import print_table
from edgespec.units import format_size


@click.group()
def cache() -> None:
    """Show, delete or disable the n-gram cache of earlier answers.

    For better drafts, edgespec counts the n-grams of each model's answers. The cache stays on this
    machine, uses up to 32 MiB per model, and contains phrases of the answers. EDGESPEC_HOME moves
    the folder.

    \b
    List the caches and their folder:
      edgespec cache show
    Disable the cache and delete its files:
      edgespec cache off
      edgespec cache clear
    """


@cache.command()
def show() -> None:
    """List the caches: model, size and time of last use.

    \b
    Print the folder:
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
    state = "on" if store.enabled() else "off: it is neither read nor written"
    click.echo(f"The n-gram cache is {state}. Folder: {store.directory()}")


@cache.command()
@click.argument("model", required=False)
def clear(model: str | None) -> None:
    """Delete the cache of a MODEL from `edgespec cache show`, or all caches.

    An open chat drops its copy the next time it saves.

    \b
    For example:
      edgespec cache clear smollm2-135m-instruct
    """
    from edgespec.drafting.stores import ngram_store as store

    count = store.clear(model)
    click.echo(f"Deleted {count} cache{'' if count == 1 else 's'}.")


@cache.command()
def off() -> None:
    """Disable the cache. Existing files stay; `clear` deletes them.

    \b
    For example:
      edgespec cache off
    """
    from edgespec.drafting.stores import ngram_store as store

    store.switch(False)
    click.echo("Off: commands that start from now on neither read nor write the n-gram cache.")


@cache.command()
def on() -> None:
    """Enable the cache again.

    \b
    For example:
      edgespec cache on
    """
    from edgespec.drafting.stores import ngram_store as store

    store.switch(True)
    click.echo("On: commands that start from now on use the n-gram cache.")
