"""Calibration data: the inputs of each matrix on a text. Layers run one at a time in float32.

Only one layer is in memory, so a model of any size is calibrated in a few gigabytes. The layers are
those of the torch reference; extra ``[torch]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.quality import shipped_text, windows
from edgespec.export.quants import dequantize
from edgespec.export.source import Source
from edgespec.export.sources.pruned import KeptLayers
from edgespec.models.gguf import TensorInfo
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.trimmed import EMBEDDING, HEAD

_FEW = 8
"""Tokens of a vocabulary that is not used: enough for the special tokens that transformers expects."""
States = list[FloatArray]
"""The hidden states between layers, float32 ``[tokens, hidden]`` for each window of the text."""


def calibration_windows(tokenizer: Tokenizer) -> list[list[int]]:
    """The text that comes with the exporter: prose, code, dialogue, instructions, other languages."""
    return windows(tokenizer, shipped_text("calibration"))


class Layers:
    """The layers of ``source`` in the PyTorch reference. Each is loaded when it runs."""

    def __init__(self, source: Source) -> None:
        try:
            import torch  # noqa: F401
            import transformers
        except ImportError as error:
            raise UserError("calibrating needs PyTorch: pip install 'edgespec[torch]'") from error
        transformers.utils.logging.disable_progress_bar()
        self._source, self._config = source, read_config(source.metadata)

    def embed(self, windows: Sequence[Sequence[int]]) -> States:
        """The embeddings of every window's tokens, as the first layer takes them."""
        info, raw = self._source.tensors[EMBEDDING], self._source.tensor(EMBEDDING)
        scale = np.float32(self._config.embedding_scale)
        return [dequantize(raw[list(w)], info.type, info.shape[-1]) * scale for w in windows]

    def run(
        self,
        layer: int,
        states: States,
        observe: Callable[[str, FloatArray, FloatArray], None] | None = None,
    ) -> States:
        """The outputs of the layer for ``states``.

        ``observe`` gets the name of every matrix of the layer, its inputs ``[tokens, K]`` and the
        layer's outputs, window by window. Matrices with the same inputs are named once, by the first
        of them.
        """
        import torch

        from edgespec.export.reference import FUSED_LAYER_NAMES, LAYER_NAMES, load_model

        model = load_model(_OneLayer(self._source, layer))
        model.model.norm = torch.nn.Identity()
        seen: dict[str, FloatArray] = {}
        if observe is not None:
            names = LAYER_NAMES | (FUSED_LAYER_NAMES if self._config.fused_gate else {})
            modules = dict(model.model.layers[0].named_modules())
            for names_sharing in shared_inputs(self._source, layer):
                short = names_sharing[0].split(".")[2]

                def hook(_: Any, inputs: Any, name: str = names_sharing[0]) -> None:
                    seen[name] = inputs[0][0].numpy()

                modules[names[short]].register_forward_pre_hook(hook)
        made: States = []
        for state in states:
            with torch.inference_mode():
                output = model.model(inputs_embeds=torch.from_numpy(state)[None], use_cache=False)
            made.append(output.last_hidden_state[0].numpy())
            if observe is not None:
                for name, inputs in seen.items():
                    observe(name, inputs, made[-1])
        return made

    def normalize(self, states: States) -> States:
        """The inputs of the head."""
        weight = self._source.tensor("output_norm.weight").view(np.float32)
        epsilon = np.float32(self._config.norm_epsilon)
        return [
            state / np.sqrt((state * state).mean(axis=-1, keepdims=True) + epsilon) * weight
            for state in states
        ]


def shared_inputs(source: Source, layer: int) -> list[list[str]]:
    """The names of a layer's matrices; those that take the same inputs together, in their order."""
    shorts = (
        ("attn_qkv", "attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",),
    )  # fmt: skip
    found = [[f"blk.{layer}.{short}.weight" for short in group] for group in shorts]
    return [kept for group in found if (kept := [n for n in group if n in source.tensors])]


class _OneLayer:
    """A source with one layer and a tiny vocabulary, so that the reference loads little."""

    def __init__(self, source: Source, layer: int) -> None:
        kept = KeptLayers(source, [layer])
        self._source = kept
        self.path: Path = source.path
        self.metadata: Mapping[str, Any] = kept.metadata
        embedding = source.tensors[EMBEDDING]
        self.tensors: dict[str, TensorInfo] = {
            **kept.tensors,
            EMBEDDING: replace(embedding, shape=(_FEW, *embedding.shape[1:])),
        }
        self.tensors.pop(HEAD, None)

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        raw = self._source.tensor(name)
        return raw[:_FEW] if name == EMBEDDING else raw
