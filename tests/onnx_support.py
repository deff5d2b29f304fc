"""What the installed ONNX Runtime can run."""

from __future__ import annotations

import onnxruntime

from tests.tiny import TINY

WINDOWS = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 24)
"""Whether its sliding windows are those of Gemma 3; Python 3.10 has no version that new."""
ARCHITECTURES = [name for name in TINY if WINDOWS or name != "gemma3"]
