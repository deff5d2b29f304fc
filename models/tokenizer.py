"""A model's tokenizer, from and to its files: GGUF metadata or a folder with ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer_gguf import from_metadata, to_metadata
from edgespec.models.tokenizer_json import from_folder, to_folder
from edgespec.models.trimmed import whole_metadata
from edgespec.models.vocabulary import TokenizerError, Vocabulary


class Tokenizer(Vocabulary):
    """A vocabulary that is read from files and written to them."""

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """The tokenizer that a GGUF file carries.

        Raises ``UserError`` where it carries none, or one of a kind that is not known here.
        """
        try:
            return from_metadata(cls, whole_metadata(file.metadata))
        except TokenizerError as error:
            raise UserError(f"the tokenizer in {file.path} is not usable: {error}") from error

    def to_gguf(self, size: int) -> dict[str, Any]:
        """The ``tokenizer.…`` metadata of a GGUF file with ``size`` rows in its embedding.

        Raises ``UserError`` where GGUF cannot describe the tokenizer.
        """
        try:
            return to_metadata(self, size)
        except TokenizerError as error:
            raise UserError(
                f"the tokenizer does not fit into a GGUF file: {error}; use --format onnx"
            ) from error

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a folder with ``tokenizer.json`` and its configuration files.

        Raises ``UserError`` where a file is missing or malformed.
        """
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        try:
            return from_folder(cls, folder)
        except TokenizerError as error:
            raise UserError(f"the tokenizer in {folder} is not usable: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and its configuration files; ``from_file`` reads the same from them.

        The same tokenizer gives the same bytes.
        """
        to_folder(self, Path(folder))
