"""A file in the making, which the same command goes on with after it was ended at any moment."""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["PartialFile"]

CHUNK = 1 << 20


class PartialFile:
    """A file under a temporary name, ``.<name>.partial``, which grows by whole parts until it is finished.

    Beside it lies ``.<name>.partial.parts``: a line of JSON that says what the file belongs to, and after each part a
    line with where that ends and a checksum of all up to there. What stands behind the last part that agrees with its
    line is cut off: it was not written to its end.

    Args:
        path: The name of the finished file.
        belongs: What the content follows from, by what it is called in messages; it is gone on with if all is equal.
    """

    def __init__(self, path: Path, belongs: Mapping[str, Any]) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.journal = path.with_name(f".{path.name}.partial.parts")
        self.belongs = json.loads(json.dumps(belongs))
        self.size = 0
        self.parts = 0
        self._checksum = 0
        self._files: tuple[BinaryIO, BinaryIO] | None = None

    def found(self) -> int:
        """How many whole parts an earlier process left that this one can go on with."""
        return len(self._read())

    def other(self) -> list[str]:
        """What differs in what an earlier process left; nothing where it left nothing."""
        earlier = self._belongs()
        if earlier is None:
            return []
        return [name for name in {**earlier, **self.belongs} if earlier.get(name) != self.belongs.get(name)]

    def open(self, parts: int) -> None:
        """Go on behind so many parts of those found; with none begin anew."""
        ends = self._read()[:parts]
        if ends and not self.partial.exists():  # ended between giving it its name and saying that all have theirs
            self.path.replace(self.partial)
        self.parts = len(ends)
        self.size, self._checksum = ends[-1] if ends else (0, 0)
        lines = [json.dumps(self.belongs), *map(json.dumps, ends)]
        unfinished = self.journal.with_suffix(".new")
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        unfinished.replace(self.journal)
        self.partial.touch()
        os.truncate(self.partial, self.size)
        self._files = self.partial.open("ab"), self.journal.open("ab")

    def write(self, text: str) -> None:
        """Add to the part that is being written."""
        assert self._files is not None
        content = text.encode()
        self._files[0].write(content)
        self.size += len(content)
        self._checksum = zlib.crc32(content, self._checksum)

    def end_part(self) -> None:
        """All that was written is whole."""
        assert self._files is not None
        data, journal = self._files
        data.flush()
        journal.write(f"{json.dumps([self.size, self._checksum])}\n".encode())
        journal.flush()
        self.parts += 1

    def close(self) -> None:
        """Write what is left."""
        files, self._files = self._files, None
        for file in files or ():
            file.close()

    def leave(self) -> None:
        """Keep the whole parts for a later process; where there are none, keep nothing."""
        with contextlib.suppress(OSError):  # closing writes what is left, and the disk may be full
            self.close()
        if not self.parts:
            self.forget()

    def finish(self, content: Path | None = None) -> None:
        """Give the file its name; or another one that was made of it. `forget` has to follow."""
        self.close()
        done = content or self.partial
        with done.open("rb") as file:
            os.fsync(file.fileno())
        done.replace(self.path)

    def forget(self) -> None:
        """Delete what tells how to go on, and what is left of the file."""
        self.journal.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)

    def _read(self) -> list[tuple[int, int]]:
        """Where the parts end that an earlier process left, and the checksums."""
        if self._belongs() != self.belongs:
            return []
        ends: list[tuple[int, int]] = []
        checksum = 0
        with contextlib.suppress(FileNotFoundError), self._left().open("rb") as file:
            for line in self._lines()[1:]:
                try:
                    end, expected = json.loads(line)
                    left = end - file.tell()
                except (ValueError, TypeError):
                    break
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    checksum = zlib.crc32(chunk, checksum)
                    left -= len(chunk)
                if left or checksum != expected:
                    break
                ends.append((end, expected))
        return ends

    def _left(self) -> Path:
        """Where the content is: it may have got its name, and others of the same result not."""
        return self.partial if self.partial.exists() else self.path

    def _belongs(self) -> dict[str, Any] | None:
        """What the content that an earlier process left belongs to; None where there is none."""
        lines = self._lines()
        with contextlib.suppress(ValueError):
            first = json.loads(lines[0]) if lines else None
            return first if isinstance(first, dict) else None
        return None

    def _lines(self) -> list[str]:
        """The lines of the journal that were written to their end."""
        try:
            return self.journal.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
        except FileNotFoundError:
            return []
