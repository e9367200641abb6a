"""Files of checkpoints that are whole under their name or not there, and that are told from damaged ones."""

import contextlib
import fcntl
import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

from backbones.errors import HeadsetError
from headset.environment import environment

__all__ = ["check_whole", "damaged", "is_whole", "newest_whole", "remove_leftovers", "save_checkpoint"]

# How a zip file begins, and how its last record does. That has 22 bytes, at the end the length of a comment after it.
ZIP = b"PK"
END, END_SIZE = b"PK\x05\x06", 22
COMMENT = b"headset sha256 "
DIGITS = 64
CHUNK = 1 << 22

_whole: dict[tuple[str, int, int, int], bool] = {}  # what was looked through already


class _Digesting:
    """A file that torch writes to, with the digest of all but the last two bytes that came."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.held = b""
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        view = memoryview(data).cast("B")
        if len(view) < 2:
            both = self.held + bytes(view)
            self.digest.update(both[:-2])
            self.held = both[-2:]
        else:
            self.digest.update(self.held)
            self.digest.update(view[:-2])
            self.held = bytes(view[-2:])
        return written

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that is whole under its name, or not there.

    It is written under another name in the same folder, brought to the disk, and renamed. The comment of the zip file
    that it is has the SHA-256 of all bytes before the digits. Stock ``torch.load`` reads it.

    Args:
        content: What ``torch.save`` takes.
        path: The file; an earlier one is replaced.

    Raises:
        HeadsetError: It cannot be written. What was there before is untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with environment(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        try:
            with _locked(part) as file:
                digesting = _Digesting(file)
                try:
                    torch.save(content, cast(IO[bytes], digesting))
                except RuntimeError as error:
                    raise digesting.error or error from None
                comment = struct.pack("<H", len(COMMENT) + DIGITS) + COMMENT
                digesting.digest.update(comment)
                file.seek(-2, os.SEEK_END)
                file.write(comment + digesting.digest.hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _locked(part: Path) -> IO[bytes]:
    """A new file that `remove_leftovers` leaves alone as long as it is open."""
    while True:
        file = part.open("w+b")
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; those that live hold a lock on theirs."""
    for part in folder.glob(".*.ckpt.*.part"):
        with contextlib.suppress(OSError), part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def is_whole(path: Path) -> bool:
    """Whether a file has the content that was written: by its digest, or, without one, by the sums of the zip file."""
    stat = path.stat()
    key = str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _whole:
        _whole[key] = _is_whole(path, stat.st_size)
    return _whole[key]


def _is_whole(path: Path, size: int) -> bool:
    tail_size = END_SIZE + len(COMMENT) + DIGITS
    with path.open("rb") as file:
        file.seek(max(0, size - tail_size))
        tail = file.read()
        if tail[-END_SIZE:].startswith(END) and tail.endswith(b"\0\0"):
            with contextlib.suppress(zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError):
                return zipfile.ZipFile(path).testzip() is None
            return False
        digits = tail[-DIGITS:]
        if not re.fullmatch(rb"[0-9a-f]{64}", digits):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - DIGITS
        while left > 0:
            data = file.read(min(CHUNK, left))
            if not data:
                return False
            digest.update(data)
            left -= len(data)
    return digest.hexdigest().encode() == digits


def newest_whole(folder: Path, but: Path | None = None) -> Path | None:
    """The newest checkpoint in a folder that is whole.

    Args:
        folder: Where to look.
        but: A file to pass over, and the links to it.
    """
    passed = but and but.resolve()
    with contextlib.suppress(OSError):
        files = [path for path in folder.glob("*.ckpt") if path.is_file() and not path.is_symlink()]
        files = sorted((path for path in files if path.resolve() != passed), key=_written, reverse=True)
        return next((path for path in files if is_whole(path)), None)
    return None


def damaged(path: Path, what: str) -> HeadsetError:
    """What to say of a file that cannot be used, with a whole one that is beside it."""
    other = newest_whole(path.parent, path)
    told = f"The newest whole one beside it: --ckpt_path {other}" if other else "There is no whole one beside it."
    return HeadsetError(f"{path} {what} {told}")


def check_whole(path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint is there, and as it was written.

    What is no zip file, and so none of ours, is left to who reads it.

    Raises:
        HeadsetError: There is none, it cannot be read, or it is damaged.
    """
    file = Path(path)
    if not file.exists():
        other = newest_whole(file.parent)
        beside = f"The newest whole one in its folder: --ckpt_path {other}"
        below = "Runs write theirs below their log folder: **/checkpoints/*.ckpt"
        raise HeadsetError(f"There is no checkpoint {path}. {beside if other else below}")
    if file.is_dir():
        return
    with environment(f"reading {file}"):
        with file.open("rb") as opened:
            known = opened.read(2) == ZIP
        whole = not known or is_whole(file)
    if not whole:
        raise damaged(file, "cannot be read: it is damaged, bytes of what was written are missing or have changed.")


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns
