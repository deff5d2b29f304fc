"""llama.cpp's own tokenizer, to compare with."""

from __future__ import annotations

import ctypes
from pathlib import Path

_kept: list[object] = []


class LlamaVocabulary:
    """The vocabulary of a GGUF file as llama.cpp has it."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._lib = llama_cpp
        # llama.cpp goes on calling it: it must outlive every vocabulary
        _kept.append(llama_cpp.llama_log_callback(lambda *_: None))
        llama_cpp.llama_log_set(_kept[-1], ctypes.c_void_p(0))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        self._lib.llama_model_free(self._model)

    def encode(self, text: str | bytes, *, special: bool = False) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids, len(ids), False, special
        )
        assert count >= 0
        return list(ids[:count])

    def token_bytes(self, id: int) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        size = self._lib.llama_token_to_piece(self._vocab, id, buffer, len(buffer), 0, True)
        assert size >= 0
        return buffer.raw[:size]

    def stop_tokens(self) -> set[int]:
        return {id for id in range(self.size) if self._lib.llama_vocab_is_eog(self._vocab, id)}
