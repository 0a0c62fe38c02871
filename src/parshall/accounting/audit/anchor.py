"""Anchors: where each account's chain ended at an audit, kept elsewhere so that a chain rewritten whole shows too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec

from parshall.kernel.errors import Invalid

Mark = tuple[str, int, str]
"""An account id, the number of its last transfer, and that transfer's hash."""

LINE_BYTES_MAX = 4096

_decode = msgspec.json.Decoder(Mark).decode
_encode = msgspec.json.encode


class AnchorUnreadable(Invalid):
    """The file is not what `--save` wrote."""

    code = "anchor_unreadable"
    title = "Anchor unreadable"
    default = "This is not an anchor that an audit saved; give the file that --save wrote, unchanged."


class AnchorWriter:
    """Gathers marks in the order of their account ids; `digest` is the SHA-256 of their lines, and so of the file.

    A line is a compact JSON array `["<account id>",<number>,"<hash>"]` and a newline, all of it UTF-8.
    """

    def __init__(self, file: BinaryIO | None) -> None:
        """Without a file only the digest is made."""
        self.keep = False
        self._file = file
        self._hash = sha256()

    @property
    def digest(self) -> str:
        """64 hex digits that stand for all marks so far."""
        return self._hash.hexdigest()

    def add(self, mark: Mark) -> None:
        """Note where an account's chain ends."""
        line = _encode(mark) + b"\n"
        self._hash.update(line)
        if self._file is not None:
            self._file.write(line)


@contextmanager
def writing(path: Path | None) -> Iterator[AnchorWriter]:
    """A writer to a file that takes its name when it is whole and the writer was told to `keep` it, else never."""
    if path is None:
        yield AnchorWriter(None)
        return
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            writer = AnchorWriter(file)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        if writer.keep:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Mark]:
    """The marks of an anchor, checked for form and order. Raises AnchorUnreadable, OSError."""
    last = ""
    with path.open("rb") as file:
        while line := file.readline(LINE_BYTES_MAX):
            try:
                mark = _decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise AnchorUnreadable from error
            if mark[0] <= last or mark[1] < 1 or not line.endswith(b"\n"):
                raise AnchorUnreadable
            last = mark[0]
            yield mark


def digest(path: Path) -> str:
    """The digest of a whole anchor, to be compared with what was noted down. Raises AnchorUnreadable, OSError."""
    whole = AnchorWriter(None)
    for mark in read(path):
        whole.add(mark)
    return whole.digest
