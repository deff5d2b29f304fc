"""Write golden_ids.json: ``python -m tests.models.make_golden_ids SmolLM2….gguf``.

The ids are those of llama.cpp (package llama-cpp-python), which must be installed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.models.corpus import CORPUS, INVALID
from tests.models.llama_reference import LlamaVocabulary

GOLDEN_IDS = Path(__file__).with_name("golden_ids.json")


def main(model: Path) -> None:
    reference = LlamaVocabulary(model)
    golden = {
        "model": model.name,
        "text": {name: reference.encode(text) for name, text in CORPUS.items()},
        "special": {name: reference.encode(text, special=True) for name, text in CORPUS.items()},
        "invalid": {name: reference.encode(data) for name, data in INVALID.items()},
        "stop_tokens": sorted(reference.stop_tokens()),
    }
    lines = json.dumps(golden, separators=(",", ":")).replace('],"', '],\n"').replace('{"', '{\n"')
    GOLDEN_IDS.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
