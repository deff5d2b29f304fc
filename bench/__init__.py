"""What ``edgespec bench`` is, and experiments on single claims.

``workloads`` and ``prompts``: the questions. ``running``: a run. ``records``: what it measured. ``report``: what that
shows. ``peers``: other systems. ``energy``: meters. ``experiments``: ``python -m edgespec.bench.experiments NAME MODEL``.
``results``: runs that the README quotes.
"""
