"""A conversation on a terminal or through a pipe: asking, showing the answer as it comes, receipts, slash commands."""

from collections.abc import Callable
from decimal import Decimal
from enum import Enum

from parshall.cli.screen import AnswerView, Screen
from parshall.client import ApiError, Client, ClientError, Receipt, Stream, StreamEvent

PER_MILLION = 1_000_000
HELP = """/new       start a new chat session
/balance   show your credits
/receipt   show the last receipt again
/help      show this list
/quit      leave (so does Ctrl-C; during an answer Ctrl-C stops the answer)"""


class Ended(Enum):
    """How an answer ended, as far as an exit code cares."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"


class Conversation:
    """One user's questions and answers in one chat session at a time; a session is opened with the first question."""

    def __init__(self, client: Client, screen: Screen, *, session_id: str | None, model_id: str | None) -> None:
        """`client` is logged in. With `session_id` that chat session goes on, else a new one is opened."""
        self._client = client
        self._screen = screen
        self._session_id = session_id
        self._model_id = model_id
        self._receipt: Receipt | None = None
        self._balance: Decimal | None = None
        self._prices: dict[str, Decimal | None] = {}

    def ask(self, message: str) -> Ended:
        """Send one message and show its answer; Ctrl-C stops it. Raises ClientError."""
        with self._screen.answer() as view:
            stream = self._client.stream(
                self._open_session(),
                message,
                model_id=self._model_id,
                on_reconnect=view.reconnecting,
            )
            try:
                ended = _Answer(self, stream, view).show()
            except KeyboardInterrupt:
                stream.close()
                ended = self._stop(stream.id)
        self.show_receipt()
        return ended

    def loop(self, read: Callable[[], str]) -> None:
        """Take lines until /quit, the end of input or Ctrl-C at the prompt. A refusal does not end it."""
        while True:
            try:
                line = read().strip()
            except (EOFError, KeyboardInterrupt):
                self._screen.note("")
                return
            if line == "/quit":
                return
            try:
                self._take(line)
            except ClientError as error:
                self._screen.complain(str(error))
            except KeyboardInterrupt:
                self._screen.note("interrupted")

    def show_receipt(self) -> None:
        """Show the receipt of the last answer."""
        if self._receipt is None:
            self._screen.note("no receipt yet")
        else:
            self._screen.note(receipt_text(self._receipt))

    def show_balance(self) -> None:
        """Fetch and show the user's credits."""
        balance = self._client.balance()
        self._balance = balance.available
        held = f", {amount(balance.reserved)} reserved by running streams" if balance.reserved else ""
        self._screen.note(f"{amount(balance.available)} credits available{held}")

    def status(self, model_id: str, tokens: int) -> str:
        """What the answer has taken so far: tokens, about how many credits, and the balance before it."""
        parts = [f"{tokens} tokens"]
        price = self._price(model_id)
        if price is not None:
            parts.append(f"about {amount((price * tokens / PER_MILLION).quantize(Decimal('0.000001')))} credits")
        if self._balance is not None:
            parts.append(f"balance {amount(self._balance)}")
        return " · ".join(parts)

    def settled(self, receipt: Receipt | None) -> None:
        """Keep the receipt of the answer that has just ended."""
        self._receipt = receipt
        if receipt is not None and not receipt.is_pending:
            self._balance = receipt.balance_after

    def _take(self, line: str) -> None:
        match line:
            case "":
                return
            case "/new":
                self._session_id = None
                self._screen.note("The next message starts a new chat session.")
            case "/balance":
                self.show_balance()
            case "/receipt":
                self.show_receipt()
            case "/help":
                self._screen.note(HELP)
            case _ if line.startswith("/") and " " not in line and line.count("/") == 1:
                self._screen.complain(f"There is no command {line}; /help lists them.")
            case _:
                self.ask(line)

    def _open_session(self) -> str:
        if self._session_id is None:
            self._session_id = self._client.create_session(model_id=self._model_id)
            self._screen.note(f"chat session {self._session_id}")
        if self._screen.is_live and self._balance is None:
            self._balance = self._client.balance().available
        return self._session_id

    def _stop(self, stream_id: str) -> Ended:
        self.settled(None)
        try:
            self.settled(self._client.stop(stream_id))
        except ApiError as error:
            if error.status != 404:
                raise
            self._screen.note("Stopped before it began; nothing is charged.")
        return Ended.STOPPED

    def _price(self, model_id: str) -> Decimal | None:
        """Credits per million output tokens; None where the server does not say. Asked only for a live status."""
        if model_id not in self._prices:
            self._prices[model_id] = self._ask_price(model_id) if self._screen.is_live else None
        return self._prices[model_id]

    def _ask_price(self, model_id: str) -> Decimal | None:
        try:
            return self._client.price(model_id, output_tokens=PER_MILLION)
        except ClientError:
            return None  # the estimate is a comfort; the receipt is what counts


class _Answer:
    """One answer while it comes."""

    def __init__(self, conversation: Conversation, stream: Stream, view: AnswerView) -> None:
        self._conversation = conversation
        self._stream = stream
        self._view = view
        self._model_id = ""

    def show(self) -> Ended:
        """Show every event; how the stream ended."""
        self._conversation.settled(None)
        for event in self._stream:
            self._show(event)
            if event.terminal:
                self._conversation.settled(event.receipt)
                return self._end(event)
        return Ended.FAILED  # only a stream that somebody closed ends without a terminal event

    def _show(self, event: StreamEvent) -> None:
        match event.event:
            case "session":
                self._model_id = str(event.data.get("modelId") or "")
            case "model":
                self._model(str(event.data.get("model") or ""), fallback=bool(event.data.get("fallbackApplied")))
            case "chunk" | "reasoning":
                self._view.write(str(event.data.get("text") or ""), aside=event.event == "reasoning")
                tokens = event.data.get("totalTokens")
                self._view.status(self._conversation.status(self._model_id, tokens if isinstance(tokens, int) else 0))

    def _model(self, model_id: str, *, fallback: bool) -> None:
        self._model_id = model_id
        if fallback:
            self._view.note(f"{model_id} answers instead of the model that was asked for.")

    def _end(self, event: StreamEvent) -> Ended:
        if event.event == "error":
            self._view.complain(str(event.data.get("message") or event.data.get("error") or "The answer failed."))
            return Ended.FAILED
        if event.data.get("status") == "incomplete":
            self._view.note(str(event.data.get("message") or "The answer is incomplete."))
            return Ended.FAILED
        if event.data.get("finishReason") == "length":
            self._view.note("The answer ends here because it reached its longest length.")
        return Ended.COMPLETE


def receipt_text(receipt: Receipt) -> str:
    """A receipt for people, on two lines."""
    source = receipt.usage_source or "unknown"
    tokens = f"{receipt.input_tokens} input + {receipt.output_tokens} output tokens ({source})"
    moved = f"charged {amount(receipt.charged)}, returned {amount(receipt.returned)}"
    settled = f"{moved}, balance {amount(receipt.balance_after)} credits"
    if receipt.is_pending:
        settled = "settlement pending: what was used is charged later, once"
    return f"{receipt.outcome}: {tokens}, {settled}\n{receipt.stream_id}"


def amount(credits: Decimal) -> str:
    """Decimal credits without trailing zeros or an exponent."""
    plain = f"{credits:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
