"""Where a conversation is shown: live with a status line on a terminal, plain text through a pipe."""

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from parshall.cli.terminal import printable

REFRESH_PER_SECOND = 12


class AnswerView(Protocol):
    """One answer being shown; a context that ends when the answer does. Live and plain."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End: the status line goes, the text stays."""
        ...

    def write(self, text: str, *, aside: bool = False) -> None:
        """The next piece of the answer; `aside` where the model thinks aloud."""
        ...

    def status(self, line: str) -> None:
        """Replace the status line."""
        ...

    def reconnecting(self, attempt: int, reason: str) -> None:
        """The connection broke and is being made anew."""
        ...

    def note(self, line: str) -> None:
        """Something to know that is not part of the answer."""
        ...

    def complain(self, line: str) -> None:
        """Something that went wrong."""
        ...


class Screen:
    """The answer goes to `out`, everything about it to `err`, so that a pipe receives the answer alone."""

    def __init__(self, out: Console, err: Console) -> None:
        """Live where `out` is a terminal that can move its cursor."""
        self.is_live = out.is_terminal and not out.is_dumb_terminal
        self._out = out
        self._err = err

    def answer(self) -> AnswerView:
        """A view for the next answer."""
        return _Live(self._out) if self.is_live else _Plain(self._out, self)

    def note(self, line: str) -> None:
        """A line about the conversation."""
        self._err.print(Text(printable(line), style="dim"), soft_wrap=True)

    def complain(self, line: str) -> None:
        """A line about what went wrong."""
        self._err.print(Text(printable(line), style="red"), soft_wrap=True)


class _Plain:
    """Text as it comes and nothing else; through a pipe it is not altered."""

    def __init__(self, out: Console, screen: Screen) -> None:
        self._out = out
        self._screen = screen
        self._ends_line = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._break_line()

    def write(self, text: str, *, aside: bool = False) -> None:
        if aside or not text:
            return
        shown = printable(text) if self._out.is_terminal else text
        self._out.file.write(shown.encode("utf-8", "replace").decode())
        self._out.file.flush()
        self._ends_line = text.endswith("\n")

    def status(self, line: str) -> None:
        pass  # a pipe has no place for it

    def reconnecting(self, attempt: int, reason: str) -> None:
        if attempt == 1:
            self._screen.note(f"reconnecting… ({reason})")

    def note(self, line: str) -> None:
        self._break_line()
        self._screen.note(line)

    def complain(self, line: str) -> None:
        self._break_line()
        self._screen.complain(line)

    def _break_line(self) -> None:
        if not self._ends_line:
            self._out.file.write("\n")
            self._out.file.flush()
            self._ends_line = True


class _Live:
    """Finished lines scroll up for good; the line that still grows and the status below it are redrawn."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._line = ""
        self._style = ""
        self._status = "waiting…"
        self._live = Live(console=out, transient=True, refresh_per_second=REFRESH_PER_SECOND)

    def __enter__(self) -> Self:
        self._live.start()
        self._redraw()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._finish_line()

    def write(self, text: str, *, aside: bool = False) -> None:
        style = "dim italic" if aside else ""
        if style != self._style:
            self._finish_line()
            self._style = style
        grown = Text(self._line + printable(text).expandtabs(4), style=style)
        *finished, last = grown.split("\n", allow_blank=True)
        # Wrapping is greedy, so that every row but the last is final: the part redrawn never exceeds one row.
        *rows, tail = last.wrap(self._out, self._out.width) or [last]
        self._line = tail.plain
        self._redraw()  # before printing, which draws the growing line anew below what it prints
        for line in (*finished, *rows):
            self._out.print(line)

    def status(self, line: str) -> None:
        self._status = line
        self._redraw()

    def reconnecting(self, attempt: int, reason: str) -> None:
        self.status(f"reconnecting… ({reason}, attempt {attempt})")

    def note(self, line: str) -> None:
        self._above(line, "dim")

    def complain(self, line: str) -> None:
        self._above(line, "red")

    def _above(self, line: str, style: str) -> None:
        """Print a line above what is redrawn; only the console that redraws knows where that is."""
        self._finish_line()
        self._out.print(Text(printable(line), style=style), soft_wrap=True)

    def _redraw(self) -> None:
        status = Text(printable(self._status), style="dim", no_wrap=True, overflow="ellipsis")
        shown: list[RenderableType] = [Text(self._line, style=self._style)] if self._line else []
        self._live.update(Group(*shown, status))

    def _finish_line(self) -> None:
        if self._line:
            finished, self._line = Text(self._line, style=self._style), ""
            self._redraw()
            self._out.print(finished)
