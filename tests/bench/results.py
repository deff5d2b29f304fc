"""A simulated run: what is said depends on the prompt, how long it takes on ``seed`` too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgespec.bench.records.results import Answer, Results, System

CATEGORIES = {"chat": 0.25, "code": 0.6, "summarizing": 0.75}
"""How often a drafted token is right."""
MEMORY = {"edgespec": 1.3e9, "llama.cpp": 1.1e9, "transformers": 3.4e9}


def systems() -> dict[str, System]:
    """Three runtimes, plain and speculating."""
    plain = {"weight_bytes": 1_000_000_000, "parameters": 1_500_000_000}
    draft = {"draft_weight_bytes": 400_000_000, "draft_parameters": 500_000_000}
    found = [
        System("edgespec none", "edgespec", perplexity=11.20, **plain),
        System("edgespec suffix", "edgespec", {"draft": "suffix"}, "edgespec none", **plain),
        System("edgespec model", "edgespec", {"draft": "qwen"}, "edgespec none", **plain, **draft),
        System("llama.cpp plain", "llama.cpp", {"mode": "plain"}, **plain),
        System("llama.cpp draft", "llama.cpp", {}, "llama.cpp plain", **plain, **draft),
        System("transformers plain", "transformers", perplexity=11.02, weights="bfloat16", **plain),
    ]
    for system in found:
        system.version = "1.2.3"
        system.weights = system.weights or "as in the file"
        system.open_s = 2.5
        system.peak_memory_bytes = int(MEMORY[system.peer])
    return {system.name: system for system in found}


SECONDS = {
    "edgespec none": 0.050,
    "edgespec suffix": 0.050,
    "edgespec model": 0.050,
    "llama.cpp plain": 0.056,
    "llama.cpp draft": 0.056,
    "transformers plain": 0.120,
}
"""Of a pass over one token."""


def simulated(
    seed: int = 0,
    *,
    slower: Mapping[str, float] | None = None,
    noise: float = 0.03,
    drift: float = 0.2,
    prompts: int = 10,
    rounds: int = 2,
    tokens: int = 64,
) -> Results:
    """``noise``: standard deviation of ln seconds of an answer; ``drift``: of the machine, over the run, which
    meets all systems alike; ``slower``: by how much a system is; ``prompts``: in a category."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi)
    found, answers, clock = systems(), list[Answer](), 0.0
    asked = [(c, i) for c in CATEGORIES for i in range(prompts)]
    count = rounds * len(asked) * len(found)
    for round_ in range(rounds):
        for number, (category, _) in enumerate(asked):
            names = list(found) if (round_ + number) % 2 == 0 else list(found)[::-1]
            for name in names:
                done = len(answers) / count
                pace = 1 + drift * (0.5 + 0.5 * np.sin(phase + 2 * np.pi * done))
                pace *= np.exp(rng.normal(0, noise)) * (1 + (slower or {}).get(name, 0.0))
                answer = _answer(name, number, category, round_, tokens, float(pace))
                answers.append(answer)
                resident = MEMORY[found[name].peer] * (0.8 + 0.2 * np.sqrt(done))
                found[name].memory.append([round(clock, 3), float(round(resident))])
                clock += answer.ttft_s + answer.decode_s
    return Results(
        model={"name": "tiny-1.5b", "bytes": 1_100_000_000, "sha256": "a" * 64}
        | {"draft": {"name": "tiny-0.5b", "bytes": 400_000_000, "sha256": "b" * 64}},
        settings={
            "command": "edgespec bench tiny-1.5b --rounds 2",
            "max_tokens": tokens,
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "seed": 0,
            "context": 4096,
            "threads": 2,
            "rounds": rounds,
            "stop": True,
            "prompts": "own.jsonl",
        },
        machine={
            "cpu": "Imaginary CPU @ 2.10GHz",
            "cores": 2,
            "frequency_hz": 2.1e9,
            "memory_bytes": 25_000_000_000,
            "bandwidth": 21e9,
            "power": "mains",
            "system": "Linux x86_64",
            "python": "3.12.1",
            "versions": {"edgespec": "0.1.0", "onnxruntime": "1.31.0"},
        },
        energy={"reader": "rapl", "why_not": None, "idle_w": 3.5, "error": 0.02},
        systems=found,
        answers=answers,
        curves={
            "onnx": _curve(0.050, 0.09, rng),
            "llama-cpp": _curve(0.056, 0.16, rng),
        },
        profile={
            "operators": [
                {"name": name, "count": n, "seconds": s}
                for name, n, s in [
                    ("MatMulNBits", 197, 0.0431),
                    ("GroupQueryAttention", 28, 0.0031),
                    ("SkipSimplifiedLayerNormalization", 56, 0.0009),
                    ("Mul", 28, 0.0005),
                    ("Sigmoid", 28, 0.0003),
                    ("Gather", 1, 0.0001),
                ]
            ],
            "own_share": 0.021,
            "pass_s": 0.050,
            "bytes": 1_000_000_000,
            "bandwidth": 21e9,
            "floor_s": 1e9 / 21e9,
        },
    )


def _curve(first: float, slope: float, rng: np.random.Generator) -> dict[int, list[float]]:
    return {
        n: [first * (1 + slope * (n - 1)) * float(np.exp(rng.normal(0, 0.02))) for _ in range(7)]
        for n in (1, 2, 4, 8, 16)
    }


def _answer(name: str, prompt: int, category: str, round_: int, tokens: int, pace: float) -> Answer:
    """Passes of plain decoding, or drafts of four tokens (model) and of three to six (suffix)."""
    content = np.random.default_rng([prompt, len(name), ord(name[-1])])
    words = np.random.default_rng(prompt).integers(1000, size=tokens).tolist()
    if name == "transformers plain" and prompt % 3 == 0:  # its weights are others
        words[tokens // 2 :] = content.integers(1000, size=tokens - tokens // 2).tolist()
    kind = name.split()[-1]
    said, passes, draft_passes, drafted, accepted = 0, 0, 0, 0, 0
    pass_s, draft_s = 0.0, 0.0
    by_rows: dict[int, list[float]] = {}
    first = first_at = 0.0
    right = CATEGORIES[category] * content.uniform(0.8, 1.2)
    if kind == "suffix":
        right *= 0.8
    while said < tokens:
        gamma = {"suffix": int(content.integers(0, 7)), "model": 4, "draft": 4}.get(kind, 0)
        gamma = min(gamma, tokens - said - 1)
        hits = 0
        while hits < gamma and content.uniform() < right:
            hits += 1
        seconds = SECONDS[name] * (1 + 0.1 * gamma) * pace
        passes, drafted, accepted = passes + 1, drafted + gamma, accepted + hits
        said, pass_s = said + hits + 1, pass_s + seconds
        if kind in ("model", "draft"):
            draft_passes, draft_s = draft_passes + gamma, draft_s + gamma * 0.007 * pace
        row = by_rows.setdefault(gamma + 1, [0, 0, 0.0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + hits + 1, row[2] + seconds
        if passes == 1:
            first, first_at = hits + 1, pass_s + draft_s
    own_s = 0.001 * passes
    decode_s = pass_s + draft_s + own_s
    tells = name.startswith("edgespec")
    return Answer(
        system=name,
        prompt=prompt,
        category=category,
        turn=0,
        round=round_,
        prompt_tokens=40 + prompt,
        token_ids=words,
        ttft_s=0.4 * pace + first_at,
        decode_s=decode_s - first_at,
        first_tokens=int(first),
        cpu_s=2 * decode_s,
        energy_j=20 * decode_s,
        passes=passes if tells or kind == "plain" else None,
        draft_passes=draft_passes if tells or kind == "plain" else None,
        drafted=drafted if name != "transformers plain" else None,
        accepted=accepted if name != "transformers plain" else None,
        draft_s=draft_s if tells else None,
        pass_s=pass_s if tells else None,
        own_s=own_s if tells else None,
        by_drafter={kind: [drafted, accepted]} if tells and drafted else {},
        by_rows=by_rows if tells else {},
    )
