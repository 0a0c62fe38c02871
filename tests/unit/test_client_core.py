"""Laws of the client's rules without a network: bytes cut anywhere, ids held together, tokens renewed once."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parshall
from parshall.client import ApiError, Client, ClientError, InsufficientCredits, StreamEvent, StreamLost, Unreachable
from parshall.client import WrongStream as Wrong
from parshall.client.addresses import Addresses
from parshall.client.core import Ask, Core
from parshall.client.errors import refusal
from parshall.client.login import Login, Tokens
from parshall.client.outage import Retry
from parshall.client.reading import Question, Reading
from parshall.client.steps import Alone, Answer, Broken, Ended, Failure, Pause, Read, Send, go_on
from parshall.kernel.ids import StreamId
from parshall.kernel.sse import GOODBYE, PING, frame, notice

ID = StreamId("stream-1620847252-a1b2c3d4")
OTHER = StreamId("stream-1620847252-a1b2c3d5")
QUESTION = Question(path="/chat/sessions/s/stream", body={"message": "hi"})
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("session", {"streamingSessionId": ID}),
    ("model", {"model": "m"}),
    *[("chunk", {"text": f"t{n} é\u2028", "tokens": 1, "totalTokens": n}) for n in range(1, 4)],
    ("done", {"status": "complete"}),
]
FRAMES = [frame(n, name, members) for n, (name, members) in enumerate(EVENTS, start=1)]
WHOLE = b"".join(FRAMES)
STREAM = Answer(status=200, headers={"Content-Type": "text/event-stream", "X-Streaming-Session-Id": ID})
GONE = Broken("the connection broke")
LIFE = 900.0


@dataclass
class Network:
    """Answers each request with the next of a script: a failure, an answer, or an answer with pieces of its body."""

    script: list[Any]
    clock: float = 0.0
    sent: list[Send] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    pieces: Iterator[Any] = field(default_factory=lambda: iter(()))

    def core(self, tokens: Tokens | None = None, **options: Any) -> Core:
        login = Login(None, now=lambda: self.clock, **options)
        if tokens is not None:
            login.keep(tokens)
        addresses = Addresses.of("http://one", auth="http://auth", accounting="http://accounting", chat=None)
        return Core(addresses, login, Retry(), now=lambda: self.clock, chance=lambda: 0.5)

    def run(self, steps: Generator[Any, Any, Any], events: list[StreamEvent] | None = None) -> Any:
        """Perform the steps; what they return. Events that they yield are added."""
        came: Any = None
        while True:
            step = go_on(steps, came)
            if isinstance(step, Ended):
                return step.value
            if isinstance(step, StreamEvent):
                assert events is not None
                events.append(step)
                came = None
            else:
                came = self.perform(step)

    def perform(self, step: Any) -> Any:
        match step:
            case Send():
                return self.send(step)
            case Read():
                piece = next(self.pieces, b"")
                return Failure(piece) if isinstance(piece, Exception) else piece
            case Pause():
                self.pauses.append(step.seconds)
                self.clock += step.seconds
            case Alone():
                try:
                    self.run(step.steps)
                except ClientError as error:
                    return Failure(error)
        return None

    def send(self, step: Send) -> Any:
        self.sent.append(step)
        answer, self.pieces = self.script.pop(0), iter(())
        if isinstance(answer, tuple):
            answer, pieces = answer
            self.pieces = iter(pieces)
        return Failure(answer) if isinstance(answer, Exception) else answer

    def read(self, **options: Any) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        self.run(Reading(self.core(), **({"stream_id": ID, "question": QUESTION} | options)).steps(), events)
        return events


def document(status: int, **members: Any) -> Answer:
    return Answer(status=status, headers={}, body=json.dumps(members).encode())


def problem(status: int, code: str, **members: Any) -> Any:
    """As the answer to a request for a stream, whose body is read piece by piece."""
    whole = document(status, code=code, message=f"{code}.", **members)
    return Answer(status=status, headers=whole.headers), [whole.body[:7], whole.body[7:]]


def assert_whole(events: list[StreamEvent], *, after: int = 0) -> None:
    assert [(event.event, dict(event.data)) for event in events] == EVENTS[after:]
    assert [event.offset for event in events] == list(range(after + 1, len(EVENTS) + 1))


# ── Bytes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", [GONE, b""], ids=["broken", "ended"])
def test_a_connection_cut_after_any_byte_loses_and_repeats_nothing(end: Any) -> None:
    for cut in range(len(WHOLE)):
        whole_events = WHOLE[:cut].count(b"\n\n")
        network = Network([(STREAM, [WHOLE[:cut], end]), (STREAM, FRAMES[whole_events:])])
        assert_whole(network.read())
        assert network.sent[1].headers.get("Last-Event-ID", "0") == str(whole_events)


def test_bytes_may_come_in_any_two_pieces() -> None:
    for cut in range(len(WHOLE)):
        network = Network([(STREAM, [piece for piece in (WHOLE[:cut], WHOLE[cut:]) if piece])])
        assert_whole(network.read())
        assert len(network.sent) == 1


@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=8), st.integers(0, 3), st.randoms(use_true_random=False))
def test_cuts_overlaps_and_pings_in_any_order_change_nothing(cuts: list[int], again: int, chance: Any) -> None:
    network = Network([])
    offset = 0
    for cut in cuts:
        rest = b"".join(FRAMES[max(offset - again, 0) :])
        pieces = [PING, rest[: cut // 2], rest[cut // 2 : cut], GOODBYE if chance.random() < 0.5 else GONE]
        if cut >= len(rest):
            break
        network.script.append((STREAM, [piece for piece in pieces if piece]))
        offset = max(offset, max(offset - again, 0) + rest[:cut].count(b"\n\n"))
    network.script.append((STREAM, FRAMES[max(offset - again, 0) :]))
    assert_whole(network.read())


def test_a_missing_event_is_asked_for_again_and_a_damaged_one_too() -> None:
    damaged = b"event: chunk\ndata: {nonsense\nid: 2\n\n"
    network = Network([(STREAM, [FRAMES[0], FRAMES[2]]), (STREAM, [damaged]), (STREAM, FRAMES[1:])])
    assert_whole(network.read())
    assert [send.headers.get("Last-Event-ID") for send in network.sent] == [None, "1", "1"]


# ── Requests of a stream ────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_is_the_proposal_then_the_offset() -> None:
    network = Network([(STREAM, FRAMES[:2]), (STREAM, FRAMES[2:])])
    network.read()
    asked, resumed = network.sent
    assert (asked.method, asked.url, asked.content) == (
        "POST",
        "http://one/api/chat/sessions/s/stream",
        b'{"message": "hi"}',
    )
    assert asked.headers["X-Streaming-Session-Id"] == ID
    assert (resumed.method, resumed.url, resumed.headers["Last-Event-ID"]) == (
        "GET",
        f"http://one/api/chat/streams/{ID}",
        "2",
    )


def test_a_question_that_never_arrived_is_asked_again_with_the_same_id() -> None:
    network = Network([GONE, problem(404, "not_found"), (STREAM, FRAMES)])
    assert_whole(network.read())
    assert [send.method for send in network.sent] == ["POST", "GET", "POST"]
    assert {send.headers["X-Streaming-Session-Id"] for send in network.sent if send.method == "POST"} == {ID}


def test_an_attempt_that_the_server_has_undone_is_made_under_another_id() -> None:
    question = Question(path=QUESTION.path, body=QUESTION.body, new_id=lambda: OTHER)
    answer = (Answer(status=200, headers=STREAM.headers | {"X-Streaming-Session-Id": OTHER}), [])
    begun = [frame(1, "session", {"streamingSessionId": OTHER}), *FRAMES[1:]]
    gone, undone = problem(404, "not_found"), problem(409, "reservation_ended")
    network = Network([GONE, gone, undone, gone, (answer[0], begun)])
    assert network.read(question=question)[-1].event == "done"
    assert network.sent[-1].headers["X-Streaming-Session-Id"] == OTHER
    assert len(network.pauses) == 2


def test_a_question_whose_process_died_is_asked_for_until_another_has_taken_over() -> None:
    network = Network([GONE, problem(404, "stream_forgotten"), problem(404, "stream_forgotten"), (STREAM, FRAMES)])
    assert_whole(network.read())
    assert [send.method for send in network.sent] == ["POST", "GET", "GET", "GET"]
    with pytest.raises(ApiError, match="stream_forgotten"):
        Network([problem(404, "stream_forgotten")]).read(question=None, after=2)


def test_an_id_of_the_callers_own_is_never_replaced() -> None:
    with pytest.raises(ApiError, match="reservation_ended"):
        Network([GONE, problem(404, "not_found"), problem(409, "reservation_ended")]).read()


def test_pauses_are_those_of_the_rule_and_end() -> None:
    network = Network([GONE] * 100)
    with pytest.raises(StreamLost) as lost:
        network.read()
    assert (lost.value.stream_id, lost.value.offset) == (ID, 0)
    assert network.pauses[:5] == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4])
    assert max(network.pauses) <= 5 and sum(network.pauses) == pytest.approx(60)


def test_a_resumed_stream_that_gives_nothing_is_over_when_its_state_says_so_twice() -> None:
    ended, running = document(200, state="ended"), document(200, state="active")
    nothing = (STREAM, [])
    network = Network([nothing, running, nothing, ended, nothing, ended])
    assert network.read(question=None, after=len(EVENTS)) == []
    assert network.script == []
    network = Network([(STREAM, [GOODBYE]), (STREAM, FRAMES[3:])])
    assert_whole(network.read(question=None, after=3), after=3)


# ── Ids ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def told(header: str | None) -> Answer:
    headers = {"Content-Type": "text/event-stream"}
    return Answer(status=200, headers=headers if header is None else {**headers, "X-Streaming-Session-Id": header})


@pytest.mark.parametrize("header", [None, "undefined", f"{ID}, {ID}", ID.upper(), ""])
def test_a_lost_or_spoilt_header_is_made_up_for_by_the_first_event(header: str | None) -> None:
    assert_whole(Network([(told(header), FRAMES[:2]), (told(header), FRAMES[2:])]).read())


@pytest.mark.parametrize("cut", [0, 1])
def test_a_header_that_contradicts_the_first_event_or_the_stream_is_an_error(cut: int) -> None:
    with pytest.raises(Wrong):
        Network([(STREAM, FRAMES[:cut]), (told(OTHER), FRAMES[cut:])]).read()


def test_a_resumed_stream_must_be_the_one_that_was_named() -> None:
    for header, first in ((OTHER, ID), (None, OTHER), (OTHER, OTHER)):
        with pytest.raises(Wrong):
            frames = [frame(1, "session", {"streamingSessionId": first}), *FRAMES[1:]]
            Network([(told(header), frames)]).read(question=None)


def test_the_id_of_the_server_counts_where_the_proposal_was_lost() -> None:
    reading = Reading(Network([]).core(), stream_id=OTHER, question=QUESTION)
    events: list[StreamEvent] = []
    network = Network([(STREAM, FRAMES[:2]), (STREAM, FRAMES[2:])])
    network.run(reading.steps(), events)
    assert_whole(events)
    assert reading.id == ID
    assert network.sent[1].url.endswith(ID)


def test_an_observer_is_told_once_and_resumes_as_an_observer() -> None:
    opening = notice("observer", {"streamingSessionId": ID}) + notice("history-start", {"after": 0})
    ending = notice("history-end", {"lastEventId": 2})
    network = Network(
        [
            (STREAM, [opening, *FRAMES[:2], ending, FRAMES[2], GONE]),
            (STREAM, [opening, ending, *FRAMES[3:]]),
        ]
    )
    events = network.read(stream_id=None, question=None, observed="/chat/sessions/s/observe")
    names = [event.event for event in events]
    assert names[:2] == ["observer", "history-start"] and names.count("history-end") == 1 and names[-1] == "done"
    assert [event.offset for event in events if event.event in ("chunk", "done")] == [3, 4, 5, 6]
    assert [(send.url[-8:], send.headers.get("Last-Event-ID")) for send in network.sent] == [
        ("/observe", None),
        ("/observe", "3"),
    ]


def test_an_observer_learns_the_id_without_the_header() -> None:
    reading = Reading(Network([]).core(), stream_id=None, after=2, observed="/o")
    network = Network([(told(None), [notice("observer", {"streamingSessionId": ID}), *FRAMES[2:]])])
    network.run(reading.steps(), [])
    assert reading.id == ID


def test_an_observer_who_may_look_no_longer_is_told_and_stops() -> None:
    ended = [*FRAMES[:2], notice("observer-end", {"reason": "no"})]
    events = Network([(STREAM, ended)]).read(stream_id=None, question=None, observed="/o")
    assert (events[-1].event, events[-1].terminal) == ("observer-end", True)


# ── Tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PAIR = {"accessToken": "a2", "refreshToken": "r2", "expiresIn": LIFE}
OLD = Tokens(access="a1", refresh="r1", expires_in=LIFE)


def carried(network: Network) -> list[str]:
    return [send.headers.get("Authorization", "-") for send in network.sent]


def profile(core: Core) -> Generator[Any, Any, Any]:
    return core.call(Ask(method="GET", path="/profile"), dict)


def test_a_token_is_renewed_ahead_of_its_end() -> None:
    hooked: list[Tokens] = []
    network = Network([document(200), document(200, **PAIR), document(200)])
    core = network.core(OLD, on_refresh=hooked.append)
    network.run(profile(core))
    network.clock = LIFE - 59
    network.run(profile(core))
    assert carried(network) == ["Bearer a1", "-", "Bearer a2"]
    assert network.sent[1].url == "http://auth/api/auth/refresh"
    assert [tokens.access for tokens in hooked] == ["a1", "a2"]


@pytest.mark.parametrize("answer", [GONE, document(503, code="unavailable"), document(429, code="rate_limited")])
def test_while_auth_is_away_a_token_that_still_holds_is_used(answer: Any) -> None:
    network = Network([answer, document(200), document(200), document(200, **PAIR), document(200)])
    core = network.core(OLD)
    network.clock = LIFE - 59
    network.run(profile(core))
    network.run(profile(core))  # at once again: auth is left alone for a while
    network.clock += 6
    network.run(profile(core))
    assert carried(network) == ["-", "Bearer a1", "Bearer a1", "-", "Bearer a2"]


def test_without_auth_a_token_that_is_over_is_an_error() -> None:
    network = Network([GONE])
    core = network.core(OLD)
    network.clock = LIFE + 1
    with pytest.raises(Unreachable, match="http://auth"):
        network.run(profile(core))


def test_a_refused_token_is_renewed_once_for_all_who_saw_it() -> None:
    network = Network([document(401), document(200, **PAIR), document(200), document(200)])
    core = network.core(OLD)
    one, two = profile(core), profile(core)
    for steps in (one, two):
        assert isinstance(go_on(steps, None), Send)
    alone = [go_on(steps, document(401, code="unauthenticated")) for steps in (one, two)]
    network.script.pop(0)
    for steps, step in zip((one, two), alone, strict=True):
        assert isinstance(step, Alone)
        network.perform(step)
        sent = go_on(steps, None)
        assert isinstance(sent, Send) and sent.headers["Authorization"] == "Bearer a2"
    assert [send.url for send in network.sent] == ["http://auth/api/auth/refresh"]


def test_a_token_that_is_due_is_renewed_once_for_all_who_wait() -> None:
    network = Network([document(200, **PAIR)])
    core = network.core(OLD)
    network.clock = LIFE - 59
    for step in [go_on(profile(core), None) for _ in range(2)]:
        assert isinstance(step, Alone)
        network.perform(step)
    assert len(network.sent) == 1


def test_a_login_that_is_over_is_told_as_auth_tells_it() -> None:
    network = Network([document(401, code="unauthenticated"), document(401, code="refresh_refused")])
    with pytest.raises(ApiError) as refused:
        network.run(profile(network.core(OLD)))
    assert refused.value.code == "refresh_refused"


# ── Calls ───────────────────────────────────────────────────────────────────────────────────────────────────────────

AWAY = document(503, code="unavailable")
UNSENT = Broken("no connection", sent=False)


@pytest.mark.parametrize(
    ("method", "repeatable", "failure", "times"),
    [
        ("GET", None, GONE, 3),
        ("GET", None, AWAY, 3),
        ("GET", None, document(500), 1),
        ("GET", None, document(429, code="rate_limited"), 1),
        ("POST", None, GONE, 1),
        ("POST", None, AWAY, 1),
        ("POST", None, UNSENT, 3),
        ("POST", True, GONE, 3),
        ("POST", True, AWAY, 3),
    ],
)
def test_only_what_may_be_repeated_is_repeated(method: str, repeatable: bool | None, failure: Any, times: int) -> None:
    network = Network([failure] * 9)
    with pytest.raises(ClientError):
        network.run(network.core().call(Ask(method=method, path="/models"), dict, repeatable=repeatable))
    assert (len(network.sent), len(network.pauses)) == (times, times - 1)


def test_a_change_of_credits_bears_one_key_through_every_repetition() -> None:
    grant = document(201, id="g", userId="u", totalCredits=1.5, remainingCredits=1.5)
    network = Network([GONE, AWAY, grant, grant])
    with Client("http://one") as client:
        client._core = network.core()
        made = [network.run(Client.allocate._steps(client, "ann", Decimal("1.5"))) for _ in range(2)]
    assert {each.total_credits for each in made} == {Decimal("1.5")}
    first, again, third, other = (send.headers["Idempotency-Key"] for send in network.sent)
    assert first == again == third != other and first and other
    assert {send.url for send in network.sent} == {"http://accounting/api/credits/allocate"}


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"userId": 7}', b"[" * 100_000])
def test_an_answer_that_parshall_never_gives_is_an_error(body: bytes) -> None:
    network = Network([Answer(status=200, headers={}, body=body)])
    client = Client("http://one")
    client._core = network.core()
    with pytest.raises(ApiError) as foreign:
        network.run(Client.sign_up._steps(client, "ann", "a@b.c", "password"))
    client.close()
    assert foreign.value.code == "not_parshall"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/auth/login", "auth"),
        ("/profile", "auth"),
        ("/profile/export", "auth"),
        ("/change-password", "auth"),
        ("/admin/users", "auth"),
        ("/credits/balance", "accounting"),
        ("/streaming-sessions/recent", "accounting"),
        ("/usage/stats", "accounting"),
        ("/prices", "accounting"),
        ("/chat/sessions", "chat"),
        ("/models", "chat"),
    ],
)
def test_each_path_goes_to_its_service(path: str, place: str) -> None:
    apart = Addresses.of(None, auth="http://auth", accounting="http://accounting/", chat="http://chat")
    assert apart.at(path, {"a": None, "b": "x y"}) == f"http://{place}/api{path}?b=x+y"
    assert Addresses.of("http://one/", auth=None, accounting=None, chat=None).at(path) == f"http://one/api{path}"


def test_every_service_needs_an_address() -> None:
    with pytest.raises(ClientError, match="no address"):
        Client(auth_url="http://auth", chat_url="http://chat")


# ── Refusals and secrets ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_says_why_and_what_to_do() -> None:
    way = {"wayOut": "Take another.", "help": "/documentation/TROUBLESHOOTING.md#unknown", "reason": "unknown"}
    error = refusal(document(404, code="not_found", message="Nothing.", requestId="r1", **way))
    assert (error.reason, error.remedy, error.help, error.request_id) == ("unknown", way["wayOut"], way["help"], "r1")
    assert refusal(document(400, code="x", details={"reason": "made_up"})).reason == "made_up"
    assert refusal(document(400, code="x", message="Do that.")).remedy == "Do that."
    assert refusal(Answer(status=502, headers={}, body=b"<html>", phrase="Bad Gateway")).code == "http_502"


def test_a_lack_of_credits_is_told_exactly() -> None:
    body = b'{"code": "insufficient_credits", "requiredCredits": 0.1, "availableCredits": 0, "reservedCredits": 7}'
    error = refusal(Answer(status=402, headers={}, body=body))
    assert isinstance(error, InsufficientCredits)
    assert (error.required, error.available, error.reserved) == (Decimal("0.1"), 0, 7)


def test_no_secret_is_shown_by_anything_that_holds_one() -> None:
    tokens = Tokens(access="secret-access", refresh="secret-refresh")
    network = Network([document(200)])
    core = network.core(tokens)
    network.run(core.call(Ask(method="POST", path="/auth/login", body={"password": "secret-word"}), dict))
    with Client("http://one", token="secret-access", refresh_token="secret-refresh") as client:
        shown = repr([tokens, network.sent, client, client.tokens])
    assert "secret" not in shown
    assert core.login.tokens == tokens


def test_its_types_are_there_for_those_who_import_it() -> None:
    assert (Path(parshall.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("options", [{"token": "t", "api_key": "k"}, {"api_key": "k", "refresh_token": "r"}])
def test_one_credential_is_enough(options: dict[str, str]) -> None:
    with pytest.raises(ClientError, match="not both"):
        Client("http://one", **options)
