"""Measures what edgespec claims: the same words, the same model, faster, in little memory.

One program a claim, run as ``python -m edgespec.bench.NAME MODEL``: ``exactness``, ``perplexity``,
``speed`` and ``memory``. Each prints a Markdown table, and writes its figures with ``--json FILE``.
"""
