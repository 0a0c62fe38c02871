"""The newest events of the local log in a file that only grows.

What was written survives the death of the process, and costs a tenth of a commit. A record that a loss of power tore is
found by its checksum, and nothing behind it counts.
"""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PLACE = struct.Struct("<QQ")
_HEAD = struct.Struct("<QQII")
"""Key of the stream, offset, length of the frame, and the checksum of all that."""


@dataclass(frozen=True, slots=True)
class Record:
    """One event of the stream that the log knows by `key`."""

    key: int
    offset: int
    frame: bytes


class Journal:
    """One file. Everything raises OSError where the disk does."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._file).st_size
        """In bytes."""
        self._torn = False

    def write(self, key: int, first: int, frames: Sequence[bytes]) -> None:
        """Keep all of a stream's frames from that offset on, or none of them."""
        if len(frames) == 1:
            content = _head(key, first, frames[0]) + frames[0]
        else:
            content = b"".join([_head(key, offset, frame) + frame for offset, frame in enumerate(frames, first)])
        if self._torn:
            os.ftruncate(self._file, self.size)  # else what follows would lie behind a record that is not whole
        self._torn = True
        _write_all(self._file, content)
        self._torn = False
        self.size += len(content)

    def records(self) -> Iterator[Record]:
        """What was kept, oldest first, up to the first record that is not whole."""
        content = os.pread(self._file, self.size, 0)
        at = 0
        while at + _HEAD.size <= len(content):
            key, offset, length, _ = _HEAD.unpack_from(content, at)
            frame = content[at + _HEAD.size : at + _HEAD.size + length]
            if len(frame) != length or not content.startswith(_head(key, offset, frame), at):
                return
            yield Record(key, offset, frame)
            at += _HEAD.size + length

    def clear(self) -> None:
        """Forget everything: it is kept elsewhere."""
        os.ftruncate(self._file, 0)
        self.size = 0

    def close(self) -> None:
        """Close the file; may be called again. What is written afterwards is refused."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1  # the number may be another file's by now


def _head(key: int, offset: int, frame: bytes) -> bytes:
    seed = zlib.crc32(_PLACE.pack(key, offset))
    return _HEAD.pack(key, offset, len(frame), zlib.crc32(frame, seed))


def _write_all(file: int, content: bytes) -> None:
    written = os.write(file, content)
    while written < len(content):  # a disk that fills up takes a part before it refuses
        written += os.write(file, content[written:])
