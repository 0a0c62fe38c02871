"""Laws of `parshall chat`: answers alone on standard output, receipts beside them, one sentence for what goes wrong."""

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console
from scripted_deployment import ANY_ID, Deployment, Exchange, listening, problem, reply, serve, vanish
from typer.testing import CliRunner

from parshall.cli.conversation import Conversation, Ended
from parshall.cli.main import app
from parshall.cli.screen import Screen
from parshall.client import Client, Retry
from parshall.kernel.sse import frame

STREAM_ID = "stream-1620847252-a1b2c3d4"
RECEIPT = {
    "streamingSessionId": STREAM_ID,
    "outcome": "completed",
    "inputTokens": 12,
    "outputTokens": 3,
    "usageSource": "provider",
    "reservedCredits": 0.1,
    "chargedCredits": 0.00240,
    "returnedCredits": 0.0976,
    "balanceAfter": 99.9976,
    "settlement": "settled",
}
PAIR = {"accessToken": "a", "refreshToken": "r", "expiresIn": 900, "user": {"id": "u", "username": "ann"}}
QUICK = Retry(pause_seconds_min=0.001, pause_seconds_max=0.01, outage_seconds_max=0.5)
ANSWER = "A flume\nmeasures flow.\u2028é"


def answer_frames(*texts: str, end: tuple[str, dict[str, Any]] | None = None) -> list[bytes]:
    end = end or ("done", {"status": "complete", "finishReason": "stop", "message": "m", "receipt": RECEIPT})
    events = [
        ("session", {"streamingSessionId": ANY_ID, "modelId": "tiny", "reservedCredits": 0.1}),
        ("model", {"model": "tiny", "fallbackApplied": False}),
        *[("chunk", {"text": text, "tokens": 1, "totalTokens": n}) for n, text in enumerate(texts, start=1)],
        end,
    ]
    return [b"retry: 1\n" * (n == 1) + frame(n, name, data) for n, (name, data) in enumerate(events, start=1)]


def ok(body: dict[str, Any]) -> Callable[[Exchange], None]:
    return reply(200, json.dumps(body).encode())


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with listening() as shared:
        shared.frames = answer_frames("A flume\n", "measures ", "flow.\u2028é")
        shared.others |= {
            "/auth/login": ok(PAIR),
            "/auth/logout": ok({"message": "bye"}),
            "/chat/sessions": reply(201, b'{"sessionId": "s1"}'),
            "/sessions/s1": ok({"sessionId": "s1", "messages": []}),
            "/credits/balance": ok({"totalCredits": 100, "availableCredits": 100, "reservedCredits": 0}),
            "/credits/calculate": ok({"credits": 4000}),
            "/stop": ok({"receipt": {**RECEIPT, "outcome": "stopped"}}),
        }
        yield shared


def run(deployment: Deployment, *arguments: str, stdin: str = "", **environment: str | None) -> Any:
    environment = {"PARSHALL_URL": deployment.url, "PARSHALL_PASSWORD": "secret-1", **environment}
    unset = dict.fromkeys(["PARSHALL_USERNAME", "PARSHALL_TOKEN"])
    return CliRunner().invoke(app, ["chat", *arguments], input=stdin, env={**unset, **environment})


class Terminal:
    """A conversation in front of a console that claims to be a terminal, and all that it was shown."""

    def __init__(self, deployment: Deployment, *, live: bool = True, session_id: str | None = None) -> None:
        self.client = Client(deployment.url, token="t", retry=QUICK)
        self.shown = io.StringIO()
        console = Console(file=self.shown, force_terminal=live, width=60, _environ={"TERM": "xterm"})
        self.screen = Screen(console, Console(file=self.shown, width=200))
        self.conversation = Conversation(self.client, self.screen, session_id=session_id, model_id=None)

    def type(self, *lines: str | BaseException) -> str:
        """Everything shown while these lines are typed; an exception stands for a key such as Ctrl-C."""
        waiting = iter(lines)

        def read() -> str:
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        with self.client:
            self.conversation.loop(read)
        return self.shown.getvalue()


# ── One question ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_answer_alone_is_on_standard_output_and_the_receipt_beside_it(deployment: Deployment) -> None:
    result = run(deployment, "-u", "ann", "What is a flume?")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert "12 input + 3 output tokens (provider)" in result.stderr
    assert "charged 0.0024, returned 0.0976, balance 99.9976 credits" in result.stderr
    assert STREAM_ID in result.stderr


def test_the_refresh_token_is_given_up_at_the_end(deployment: Deployment) -> None:
    run(deployment, "-u", "ann", "hello")
    assert deployment.seen() == ["POST login", "POST sessions", "POST stream", "POST logout"]


def test_the_question_may_come_through_a_pipe(deployment: Deployment) -> None:
    result = run(deployment, "-u", "ann", stdin="What is\na flume?\n")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")


def test_the_password_may_come_through_a_pipe_before_the_question(deployment: Deployment) -> None:
    bodies: list[dict[str, str]] = []
    taken = deployment.others["/auth/login"]
    deployment.others["/auth/login"] = lambda exchange: (bodies.append(json.loads(exchange.body)), taken(exchange))[1]
    result = run(deployment, "-u", "ann", "--password-stdin", stdin="other secret\nhello", PARSHALL_PASSWORD="unused")
    assert result.exit_code == 0
    assert bodies == [{"username": "ann", "password": "other secret"}]


def test_a_token_stands_in_for_a_login(deployment: Deployment) -> None:
    assert run(deployment, "--token", "t", "hello").exit_code == 0
    assert deployment.seen() == ["POST sessions", "POST stream"]


def test_a_named_chat_session_is_gone_on_with(deployment: Deployment) -> None:
    assert run(deployment, "--token", "t", "--session", "s1", "hello").exit_code == 0
    assert deployment.seen() == ["GET s1", "POST stream"]


def test_a_broken_connection_is_taken_up_and_said(deployment: Deployment) -> None:
    deployment.script[:] = [serve(cut_bytes=sum(map(len, deployment.frames[:3]))), problem(503, "unavailable"), vanish]
    result = run(deployment, "-u", "ann", "hello")
    assert (result.exit_code, result.stdout) == (0, "A flume\n" + ANSWER.partition("\n")[2] + "\n")
    assert result.stderr.count("reconnecting…") == 1


def test_an_answer_that_fails_is_exit_code_1_with_its_receipt(deployment: Deployment) -> None:
    failure = {"error": "PROVIDER_ERROR", "code": "provider_error", "message": "The model broke; try again."}
    deployment.frames = answer_frames("half", end=("error", {**failure, "receipt": RECEIPT}))
    result = run(deployment, "-u", "ann", "hello")
    assert (result.exit_code, result.stdout) == (1, "half\n")
    assert "The model broke; try again." in result.stderr
    assert "charged 0.0024" in result.stderr


def test_an_answer_cut_by_the_balance_is_exit_code_1(deployment: Deployment) -> None:
    end = {"status": "incomplete", "finishReason": "credit_limit", "message": "Out of credits.", "receipt": RECEIPT}
    deployment.frames = answer_frames("half", end=("done", end))
    result = run(deployment, "-u", "ann", "hello")
    assert result.exit_code == 1
    assert "Out of credits." in result.stderr


def test_an_unsettled_receipt_states_no_amounts(deployment: Deployment) -> None:
    pending = {**RECEIPT, "settlement": "pending", "chargedCredits": None, "balanceAfter": None}
    deployment.frames = answer_frames("x", end=("done", {"status": "complete", "receipt": pending}))
    result = run(deployment, "-u", "ann", "hello")
    assert "settlement pending" in result.stderr
    assert "charged 0" not in result.stderr


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/auth/login", 401, "wrong_credentials"), ("/chat/sessions", 403, "forbidden"), ("/stream", 402, "insufficient")],
)
def test_a_refusal_is_one_sentence(deployment: Deployment, path: str, status: int, code: str) -> None:
    deployment.others[path] = problem(status, code)
    result = run(deployment, "-u", "ann", "hello")
    assert result.exit_code == 1
    assert f"{code}, really." in result.stderr.splitlines()
    assert "Traceback" not in result.output


def test_nobody_listening_is_one_sentence() -> None:
    result = CliRunner().invoke(
        app, ["chat", "--url", "http://127.0.0.1:1", "-u", "a", "hi"], env={"PARSHALL_PASSWORD": "p"}
    )
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "http://127.0.0.1:1 cannot be reached" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "hint"),
    [
        (["hello"], {}, "--username"),
        (["-u", "ann", "hello"], {"PARSHALL_PASSWORD": ""}, "--password-stdin"),
        (["-u", "ann"], {}, "nothing to ask"),
        (["-u", "ann", "  "], {}, "nothing to ask"),
        (["-u", "ann", "--password", "x", "hello"], {}, "No such option"),
    ],
)
def test_a_wrong_call_is_exit_code_2(
    deployment: Deployment, arguments: list[str], environment: dict[str, str], hint: str
) -> None:
    result = run(deployment, *arguments, **environment)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_bytes_that_are_no_text_do_not_break_the_question(deployment: Deployment) -> None:
    with Client(deployment.url, token="t") as client:
        screen = Screen(Console(file=io.StringIO()), Console(file=io.StringIO()))
        ended = Conversation(client, screen, session_id="s1", model_id=None).ask("a\udcffb\x00")
    assert ended is Ended.COMPLETE


# ── A conversation ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_keeps_its_session_until_a_new_one_is_asked_for(deployment: Deployment) -> None:
    Terminal(deployment, live=False).type("one", "two", "/new", "three", "/quit", "never")
    assert deployment.seen() == [
        *["POST sessions", "POST stream", "POST stream"],
        *["POST sessions", "POST stream"],
    ]


def test_commands_answer_without_asking_a_model(deployment: Deployment) -> None:
    shown = Terminal(deployment, live=False).type("/help", "/balance", "/receipt", "/nonsense", "")
    assert deployment.seen() == ["GET balance"]
    for expected in ("/quit", "100 credits available", "no receipt yet", "no command /nonsense"):
        assert expected in shown


def test_a_path_is_a_question_and_not_a_command(deployment: Deployment) -> None:
    Terminal(deployment, live=False).type("/etc/hosts")
    assert deployment.seen()[-1] == "POST stream"


def test_a_refusal_does_not_end_a_conversation(deployment: Deployment) -> None:
    deployment.script[:] = [problem(402, "insufficient_credits")]
    shown = Terminal(deployment, live=False).type("one", "two")
    assert "insufficient_credits, really." in shown
    assert "charged 0.0024" in shown


def test_ctrl_c_at_the_prompt_leaves(deployment: Deployment) -> None:
    Terminal(deployment, live=False).type(KeyboardInterrupt(), "never")
    assert deployment.seen() == []


def test_ctrl_c_during_an_answer_stops_it_and_shows_the_receipt(deployment: Deployment, monkeypatch: Any) -> None:
    terminal = Terminal(deployment, live=False)
    view = terminal.screen.answer()

    def interrupted(text: str, *, aside: bool = False) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "write", interrupted, raising=True)
    monkeypatch.setattr(terminal.screen, "answer", lambda: view)
    shown = terminal.type("hello")
    assert deployment.seen() == ["POST sessions", "POST stream", "POST stop"]
    assert deployment.requests[-1][1] == f"/api/chat/streams/{deployment.started[0]}/stop"
    assert "stopped: 12 input" in shown


def test_a_live_answer_shows_tokens_an_estimate_and_the_balance(deployment: Deployment) -> None:
    terminal = Terminal(deployment)
    terminal.type("hello")
    assert terminal.conversation.status("tiny", 3) == "3 tokens · about 0.012 credits · balance 99.9976"


def what_stays(output: str) -> list[str]:
    """The rows that a terminal shows in the end: line feeds, erasing a row and going up count, colours do not."""
    rows, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            rows[row] = ""
        elif part[0] not in "\x1b\r":
            rows[row] += part
    return [shown.rstrip() for shown in rows]


def test_a_live_answer_leaves_exactly_its_text(deployment: Deployment) -> None:
    words = [f"word{n} " for n in range(100)]
    deployment.frames = answer_frames(*words, "\n\n", "end\nof ", "it")
    rows = what_stays(Terminal(deployment, session_id="s1").type("hello"))
    assert " ".join(rows[: rows.index("")]) == "".join(words).strip()
    assert rows[rows.index("") + 1 :][:2] == ["end", "of it"]
    assert rows[rows.index("of it") + 1].startswith("completed: 12 input")


def test_what_a_model_thinks_aloud_is_shown_live_and_kept_out_of_pipes(deployment: Deployment) -> None:
    deployment.frames[2] = deployment.frames[2].replace(b"event: chunk", b"event: reasoning")
    rows = what_stays(Terminal(deployment, session_id="s1").type("hello"))
    assert rows[:2] == ["A flume", "measures flow.\u2028é"]
    assert run(deployment, "-u", "ann", "hello").stdout == "measures flow.\u2028é\n"


@pytest.mark.parametrize("live", [True, False])
def test_a_model_cannot_drive_the_terminal(deployment: Deployment, live: bool) -> None:
    deployment.frames = answer_frames("\x1b]0;owned\x07 red \x9b31m [bold]plain[/bold]")
    terminal = Terminal(deployment, live=live)
    if not live:
        terminal.screen = Screen(
            Console(file=terminal.shown, force_terminal=True, _environ={"TERM": "dumb"}), terminal.screen._err
        )
        terminal.conversation = Conversation(terminal.client, terminal.screen, session_id=None, model_id=None)
    shown = terminal.type("hello")
    assert "\x1b]" not in shown
    assert "\x9b" not in shown
    assert "[bold]plain[/bold]" in shown
