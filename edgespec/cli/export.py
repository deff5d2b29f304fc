"""``edgespec export``: a model as a bundle that fits the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgespec.cli.progress import ProgressBar
from edgespec.errors import UserError
from edgespec.units import format_size

if TYPE_CHECKING:
    from edgespec.engine import Engine
    from edgespec.export.pipeline import Exported
    from edgespec.export.vocabulary import Answer

_PATH = click.Path(path_type=Path)
_ANSWER_TOKENS = 256
"""Tokens of each answer that --sampled-from takes."""


@click.command()
@click.argument("source")
@click.argument("out", type=_PATH)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["packed", "onnx", "gguf"]),
    help="packed: for CPUs, by edgespec's kernels; onnx: for ONNX Runtime alone, on phones, GPUs and "
    "machines without the kernels; gguf: for llama.cpp.  [default: packed where the kernels are here, else onnx]",
)
@click.option(
    "--weights",
    type=click.Choice(["exact", "fp16", "int8", "int4"]),
    default="exact",
    show_default=True,
    help="exact keeps the weights; the others quantize them. In ONNX, int4 of a target uses calibration "
    "(extra torch; up to hours); int4 of a draft model uses rounding (minutes), which only lowers "
    "acceptance, and the report shows by how much. In GGUF, int4 is Q4_K_M (extra llama).",
)
@click.option(
    "--via",
    type=click.Choice(["optimum"]),
    help="Export with Optimum (extra export), for an architecture that edgespec does not support.",
)
@click.option(
    "--trim-vocab",
    metavar="N|auto",
    help="Make a draft model with only the N most frequent tokens; auto: the N with the most expected "
    "tokens per second on this device.",
)
@click.option(
    "--corpus",
    type=_PATH,
    metavar="FILE",
    multiple=True,
    help="Count the tokens of this text, or of the texts in JSON lines; may be repeated, also with "
    "--sampled-from.",
)
@click.option(
    "--sampled-from",
    metavar="TARGET",
    help="Count the tokens of this model's answers to --prompts.",
)
@click.option(
    "--prompts", type=_PATH, metavar="FILE", help="One prompt a line, or JSON lines with a prompt."
)
@click.option(
    "--keep-layers",
    metavar="LIST|K",
    help="Make a draft model from these layers (0,1,5), or from the K most important ones (extra torch).",
)
@click.option(
    "--draft",
    "drafts",
    type=_PATH,
    metavar="BUNDLE",
    multiple=True,
    help="Add the draft model of another bundle; may be repeated.",
)
@click.option("--allow-loss", is_flag=True, help="Allow a perplexity increase of more than 3 %.")
def export(
    source: str,
    out: Path,
    format_: str | None,
    weights: str,
    via: str | None,
    trim_vocab: str | None,
    corpus: tuple[Path, ...],
    sampled_from: str | None,
    prompts: Path | None,
    keep_layers: str | None,
    drafts: tuple[Path, ...],
    allow_loss: bool,
) -> None:
    """Export SOURCE as a bundle in the folder OUT.

    SOURCE is a name from `edgespec models list`, a .gguf file or a folder with safetensors. OUT is a
    new folder; `edgespec chat OUT` runs it. It contains a report of the quality loss.

    \b
    Export a target without changes:
      edgespec export qwen2.5-coder-1.5b-instruct coder
    Export a small draft model, and both in one bundle:
      edgespec export qwen2.5-coder-0.5b-instruct draft --trim-vocab 16384 --corpus src.txt \\
        --sampled-from qwen2.5-coder-1.5b-instruct --prompts prompts.txt
      edgespec export qwen2.5-coder-1.5b-instruct coder --draft draft
    Quantize a full-precision checkpoint:
      edgespec export ./SmolLM2-135M-Instruct small --weights int4
    Export for a phone, a GPU or llama.cpp:
      edgespec export qwen2.5-coder-0.5b-instruct phone --format onnx
      edgespec export ./SmolLM2-135M-Instruct small --format gguf --weights int4
    """
    from edgespec import kernels
    from edgespec.export.pipeline import export as run
    from edgespec.export.recipe import Recipe
    from edgespec.export.sources.pruned import parse_layers
    from edgespec.models import store

    if (sampled_from is None) != (prompts is None):
        raise click.UsageError("--sampled-from and --prompts go together")
    recipe = Recipe(
        format_ or ("onnx" if kernels.why_not() else "packed"),
        weights,
        None if keep_layers is None else parse_layers(keep_layers),
        _tokens(trim_vocab),
        corpus,
        drafts,
        allow_loss,
    )
    progress = ProgressBar()
    try:
        path = Path(source) if Path(source).is_dir() else store.resolve(source, progress)
        if via is not None:
            if recipe != Recipe(recipe.format) or format_ or sampled_from is not None:
                raise click.UsageError(
                    "--via optimum writes the model as it is; it does not go with other options"
                )
            from edgespec.export.via_optimum import export_with_optimum

            export_with_optimum(path, out, progress)
            progress.stop()
            click.echo(f"{out}: made by Optimum; use it with `edgespec chat {out}`")
            return
        if sampled_from is None:
            exported = run(path, out, recipe, progress=progress)
        else:
            assert prompts is not None
            from edgespec.engine import Engine

            with Engine.open(sampled_from, draft="hierarchy", progress=progress) as engine:
                answers = _answers(engine, _prompts(prompts), progress)
                target = engine.target
                exported = run(path, out, recipe, answers=answers, target=target, progress=progress)
    finally:
        progress.stop()
    _print(exported)


def _tokens(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise click.UsageError(f"--trim-vocab is {text!r}; give a number of tokens, or auto")
    return int(text)


def _prompts(file: Path) -> list[str]:
    """The prompts of a file: JSON lines with a prompt, or a line each."""
    from edgespec.export.vocabulary import texts_of

    found = [text for text in texts_of(file) if text.strip()]
    if not found:
        raise UserError(f"{file} holds no prompts; write one a line")
    return found


def _answers(engine: Engine, prompts: list[str], progress: ProgressBar) -> list[Answer]:
    """The token ids of every prompt and of the target's answer."""
    found: list[Answer] = []
    for i, prompt in enumerate(prompts):
        progress("sampling answers", i, len(prompts))
        session = engine.session()
        for _ in (session.chat if engine.can_chat else session.complete)(
            prompt, max_tokens=_ANSWER_TOKENS
        ):
            pass
        found.append((session.prompt_ids, session.token_ids))
    return found


def _print(exported: Exported) -> None:
    quality, draft, whole = exported.quality, exported.draft, exported.whole
    use = "edgespec chat" if draft is None else "edgespec chat TARGET --draft"
    click.echo(
        f"{exported.folder}: {format_size(exported.size)}; use it with `{use} {exported.folder}`"
    )
    if quality is not None:
        click.echo(
            f"perplexity {quality.perplexity:.3f} on {quality.tokens} tokens held out; "
            f"{quality.bits_per_weight:.2f} bits a weight, {format_size(quality.bytes_per_token)} read a token"
        )
        if exported.referee is not None:
            click.echo(
                f"the source on {exported.referee}: {quality.reference_perplexity:.3f} "
                f"({quality.loss:+.1%}), KL divergence {quality.kl_divergence:.4f}"
            )
    if draft is not None and whole is not None:
        click.echo(f"{'a draft pass':<24}{'whole':>12}{'this draft':>12}{'ratio':>8}")
        rows = [
            ("MiB read", whole.weight_bytes / 2**20, draft.weight_bytes / 2**20, "{:.0f}"),
            ("milliseconds", whole.pass_seconds * 1e3, draft.pass_seconds * 1e3, "{:.2f}"),
            ("coverage", whole.coverage, draft.coverage, "{:.1%}"),
            ("acceptance α", whole.acceptance, draft.acceptance, "{:.1%}"),
        ]
        for name, before, after, form in rows:
            ratio = f"{after / before:.2f}" if before else "–"
            click.echo(f"{name:<24}{form.format(before):>12}{form.format(after):>12}{ratio:>8}")
