"""``edgespec models``: the catalogue and the installed models."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import click

from edgespec.cli.progress import ProgressBar
from edgespec.cli.table import print_table
from edgespec.errors import UserError
from edgespec.files import folder_bytes
from edgespec.models import store
from edgespec.models.catalogue import CatalogueEntry, load_catalogue
from edgespec.models.gguf_kinds import shard_paths
from edgespec.units import format_size

_NEXT_LINE = "\n" + " " * 14
"""Begins a further line of a fact of ``models show``."""


@click.group()
def models() -> None:
    """List, download and remove models.

    A model is downloaded when it is first used, or with `pull` before that. EDGESPEC_HOME moves
    the models folder.

    \b
    List the models:
      edgespec models list
    Download a model for use without a network:
      edgespec models pull qwen2.5-coder-1.5b-instruct
    """


@models.command("list")
def list_models() -> None:
    """List the models of the catalogue.

    For any other GGUF file, give its path.

    \b
    List the installed ones:
      edgespec models list | grep yes
    """
    here = {model.entry.name for model in store.installed()}
    rows = [("NAME", "SIZE", "LICENSE", "INSTALLED", "WHAT FOR")]
    for entry in load_catalogue().values():
        installed = "yes" if entry.name in here else "-"
        rows.append(
            (entry.name, format_size(entry.size), entry.license, installed, entry.description)
        )
    print_table(rows)


@models.command()
@click.argument("name")
def show(name: str) -> None:
    """Show the metadata of a model: a NAME from the list or a .gguf file.

    \b
    For example:
      edgespec models show smollm2-135m-instruct
      edgespec models show ~/Downloads/model.gguf
    """
    entry = load_catalogue().get(name.lower())
    facts = _of_entry(entry) if entry else _of_file(store.resolve(name))
    width = max(map(len, facts))
    for label, value in facts.items():
        click.echo(f"{label:<{width}}  {value}")


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download a model, if it is not installed.

    An interrupted download resumes. The file is installed only if its SHA-256 is correct.

    \b
    For example:
      edgespec models pull qwen2.5-coder-0.5b-instruct
    """
    entry = load_catalogue().get(name.lower())
    if entry is None:
        raise store.unknown_model(name)
    progress = ProgressBar()
    try:
        path = store.pull(entry, progress)
    finally:
        progress.stop()
    click.echo(path)


@models.command()
@click.argument("name", metavar="NAME|FILE")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def remove(name: str, yes: bool) -> None:
    """Delete a downloaded model and what was built from it; of a .gguf FILE, only what was built.

    \b
    For example:
      edgespec models remove qwen2.5-coder-0.5b-instruct --yes
      edgespec models remove ~/Downloads/model.gguf
    """
    if Path(name).is_file():
        _remove_built(Path(name), yes)
        return
    found = [model.entry for model in store.installed() if model.entry.name == name.lower()]
    if found and not yes:
        click.confirm(f"Remove {name} ({format_size(found[0].size)})?", abort=True, err=True)
    store.remove(name)
    click.echo(f"Removed {name}.")


def _remove_built(path: Path, yes: bool) -> None:
    folders = _copies(path)
    if not folders:
        raise UserError(f"nothing was built from {path}; delete the file itself if you want to")
    if not yes:
        size = format_size(sum(map(folder_bytes, folders)))
        click.confirm(f"Remove what was built from {path} ({size})?", abort=True, err=True)
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise UserError(f"cannot remove {folder}: {store.reason(error)}") from error
    click.echo(f"Removed what was built from {path}.")


def _copies(path: Path) -> list[Path]:
    """The folders that were built from a model; its file may have to be hashed for that."""
    from edgespec.loading import copies

    progress = ProgressBar()
    try:
        return copies(path, progress)
    finally:
        progress.stop()


def _built(path: Path) -> str:
    """The folders that were built from a model, a line each, with their sizes on the disk."""
    lines = [f"{format_size(folder_bytes(folder))} in {folder}" for folder in _copies(path)]
    return _NEXT_LINE.join(lines) or "nothing yet"


def _of_entry(entry: CatalogueEntry) -> dict[str, str]:
    paths = [str(model.path) for model in store.installed() if model.entry == entry]
    return {
        "name": entry.name,
        "what for": entry.description,
        "architecture": entry.architecture,
        "parameters": f"{entry.parameters / 1e6:,.0f} million",
        "quantization": entry.quantization,
        "license": entry.license,
        "size": format_size(entry.size),
        "sha256": entry.sha256 or "as its source states",
        "tokenizer": entry.tokenizer_family,
        "drafts": ", ".join(entry.drafts) or "-",
        "runtimes": ", ".join(entry.runtimes),
        "sources": _NEXT_LINE.join(entry.sources),
        "installed": "".join(paths) or f"no; `edgespec models pull {entry.name}`",
        **({"built": _built(Path(paths[0]))} if paths else {}),
    }


def _of_file(path: Path) -> dict[str, str]:
    from edgespec.models.gguf import GGUFFile

    file = GGUFFile(path)
    types = Counter(tensor.type for tensor in file.tensors.values())
    context = file.metadata.get(f"{file.architecture}.context_length", "not stated")
    return {
        "name": str(file.metadata.get("general.name", path.stem)),
        "architecture": file.architecture or "not stated",
        "context": f"{context} tokens",
        "license": str(file.metadata.get("general.license", "not stated")),
        "size": format_size(sum(file.stat().st_size for file in shard_paths(path))),
        "tensors": ", ".join(f"{count} {name}" for name, count in types.most_common()),
        "path": str(path.resolve()),
        "built": _built(path),
    }
