"""The measurements of a run so far, on disk, so that a stopped run can be resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgespec.errors import UserError


@dataclass
class Journal:
    """A file of JSON lines: a header that identifies the run, then its events."""

    path: Path
    found: list[dict[str, Any]] = field(default_factory=list)
    """The events that the file had when it was opened."""

    @classmethod
    def begin(cls, folder: Path, header: dict[str, Any], resume: bool) -> Journal:
        """Start a journal in ``folder``, or ``resume`` the one there. Raises ``UserError`` where that is not possible."""
        path = folder / "journal.jsonl"
        header = json.loads(json.dumps(header))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            if lines and not resume:
                raise UserError(
                    f"{folder} holds a run; go on with it by --resume, or name another --output"
                )
            if resume and not lines:
                raise UserError(f"{folder} holds no run to resume; leave --resume out")
            if lines and not lines[-1].endswith(b"\n"):  # killed in mid-write
                path.write_bytes(b"".join(lines := lines[:-1]))
            if not lines:
                path.write_text(json.dumps(header) + "\n", encoding="utf-8")
                return cls(path)
            try:
                was, *found = [json.loads(line) for line in lines]
            except ValueError as error:
                raise UserError(f"{path} is damaged: {error}; name another --output") from error
        except OSError as error:
            raise UserError(
                f"cannot use {folder}: {error.strerror}; name another --output"
            ) from error
        if different := [name for name in header if was.get(name) != header[name]]:
            raise UserError(
                f"the run in {folder} was of other {', '.join(different)}; "
                "give the same options to --resume it, or name another --output"
            )
        return cls(path, found)

    def add(self, **what: Any) -> None:
        """Append an event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")
