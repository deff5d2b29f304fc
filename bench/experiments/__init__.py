"""Programs that measure one claim each: ``python -m edgespec.bench.experiments NAME MODEL``.

Each prints a Markdown table, and writes its figures with ``--json FILE``.
"""
