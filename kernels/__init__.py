"""A decoder's layers over GGUF's own blocks, in C: operators of ONNX Runtime, and the files they read.

``LAYOUT.md`` has the layouts of matrices and cache, and how the kernels work; ``operators.py`` puts them into a graph. The
library is built with the package (``build_backend/``); ``why_not`` says why it is missing.
"""

from edgespec.kernels.native import (
    LAYOUT_VERSION,
    TYPES,
    isa,
    isas,
    library,
    set_isa,
    set_threads,
    why_not,
)
from edgespec.kernels.operators import (
    DOMAIN,
    Shape,
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
    open_packed,
    pack,
    packable,
)

__all__ = [
    "DOMAIN",
    "LAYOUT_VERSION",
    "TYPES",
    "Matrix",
    "Packed",
    "PackedFileError",
    "Shape",
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
    "set_threads",
    "share",
    "why_not",
]
