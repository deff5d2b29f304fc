"""Matrix products over GGUF's own blocks, in C: operators of ONNX Runtime, and the files they read.

``LAYOUT.md`` has the packed layout and how the kernels work; ``operators.py`` puts them into a graph. The
library is built with the package (``build_backend/``); ``why_not`` says why it is missing.
"""

from edgespec.kernels.native import (
    TYPES,
    isa,
    isas,
    library,
    set_isa,
    why_not,
)
from edgespec.kernels.operators import (
    DOMAIN,
    gather_node,
    matmul_node,
    placeholder,
    register,
    share,
)
from edgespec.kernels.packed import (
    Matrix,
    Packed,
    PackedFileError,
    fingerprint,
    open_packed,
    pack,
    packable,
)

__all__ = [
    "DOMAIN",
    "TYPES",
    "Matrix",
    "Packed",
    "PackedFileError",
    "fingerprint",
    "gather_node",
    "isa",
    "isas",
    "library",
    "matmul_node",
    "open_packed",
    "pack",
    "packable",
    "placeholder",
    "register",
    "set_isa",
    "share",
    "why_not",
]
