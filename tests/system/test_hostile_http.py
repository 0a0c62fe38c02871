"""Requests that no client sends: what RFC 9112 forbids is refused, and its connection closed; nobody waits for ever."""

import itertools
import re
import threading
import time
from collections.abc import Iterator

import pytest
from tests.hostile import Deployment, Line, deployed, wait_until
from tests.serving import Server, text_of

from parshall.app.arrival import BODY_SECONDS, HEAD_SECONDS

HEAD = 1.0
BODY = 1.0
"""Seconds that the server under test gives a header and a body."""
HOST = b"Host: parshall.example\r\n"
VERSION = b"GET /api/version HTTP/1.1\r\n" + HOST + b"\r\n"
LOGIN = b"POST /api/auth/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CODED = b"Transfer-Encoding: chunked"
CHUNKED = LOGIN + CODED + b"\r\n\r\n"
WRONG = b'{"username":"nobody","password":"nothing"}'
END = b"0\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 [0-9]{3} [A-Z]")


def get(target: bytes = b"/api/version", version: bytes = b"HTTP/1.1", fields: bytes = HOST) -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + fields + b"\r\n"


def sized(*fields: bytes, body: bytes = b"{}") -> bytes:
    return LOGIN + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def coded(coding: bytes) -> bytes:
    return sized(b"Transfer-Encoding: " + coding, body=END)


REFUSED: dict[str, tuple[str, bytes, set[int]]] = {
    # Two readers, two lengths: RFC 9112 §6.1, §6.3
    "length and coding": ("§6.1", sized(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=END + b"X"), {400}),
    "coding and length": ("§6.1", sized(b"Transfer-Encoding: chunked", b"Content-Length: 6", body=END + b"X"), {400}),
    "lengths that differ": ("§6.3", sized(b"Content-Length: 2", b"Content-Length: 3", body=b"{}x"), {400}),
    "a length twice": ("§6.3", sized(b"Content-Length: 2", b"Content-Length: 2"), {400}),
    "a list of lengths": ("§6.3", sized(b"Content-Length: 2, 2"), {400}),
    "a negative length": ("§6.3", sized(b"Content-Length: -1"), {400}),
    "a signed length": ("§6.3", sized(b"Content-Length: +2"), {400}),
    "a length in hex": ("§6.3", sized(b"Content-Length: 0x2"), {400}),
    "a length with a space": ("§6.3", sized(b"Content-Length: 1 2"), {400}),
    "no length": ("§6.3", sized(b"Content-Length:"), {400}),
    "a length beyond 64 bits": ("§6.3", sized(b"Content-Length: 99999999999999999999999"), {400, 413}),
    "an unknown coding": ("§6.1", coded(b"xchunked"), {400, 501}),
    "identity": ("§6.1", coded(b"identity"), {400, 501}),
    "chunked, then more": ("§6.1", coded(b"chunked, identity"), {400, 501}),
    "gzip, then chunked": ("§6.1", coded(b"gzip, chunked"), {400, 501}),
    "chunked twice": (
        "§6.1",
        sized(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=END),
        {400, 501},
    ),
    "chunked and another": (
        "§6.1",
        sized(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=END),
        {400, 501},
    ),
    "chunked in quotes": ("§6.1", coded(b'"chunked"'), {400, 501}),
    "chunked after a vertical tab": ("§6.1", coded(b"\x0bchunked"), {400, 501}),
    "chunked before a NUL": ("§6.1", coded(b"chunked\0"), {400, 501}),
    "a coding in HTTP/1.0": ("§6.1", CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + END, {400, 401, 501}),
    "a space before the colon of a coding": ("§5.1", sized(b"Transfer-Encoding : chunked", body=END), {400}),
    "a folded coding": ("§5.2", sized(b"Transfer-Encoding:\r\n chunked", body=END), {400, 501}),
    # Chunks: RFC 9112 §7.1
    "a negative chunk": ("§7.1", CHUNKED + b"-2\r\n{}\r\n" + END, {400}),
    "a chunk in C": ("§7.1", CHUNKED + b"0x2\r\n{}\r\n" + END, {400}),
    "a chunk beyond 64 bits": ("§7.1", CHUNKED + b"F" * 17 + b"\r\n{}\r\n" + END, {400}),
    "a chunk that never comes": ("§7.1", CHUNKED + b"F" * 12 + b"\r\n{}\r\n" + END, {408}),
    "a chunk that ends with LF": ("§7.1", CHUNKED + b"2\n{}\n0\n\n", {400}),
    "a chunk with a space": ("§7.1", CHUNKED + b"2 \r\n{}\r\n" + END, {400}),
    "a chunk without its end": ("§7.1", CHUNKED + b"2\r\n{}XX" + END, {400}),
    "an extension that ends with LF": ("§7.1.1", CHUNKED + b"2;\n{}\r\n" + END, {400}),
    "an extension without end": ("§7.1.1", CHUNKED + b"2;" + b"a" * 9_000_000, {400, 408, 413}),
    "trailers without end": ("§7.1.2", CHUNKED + b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 40_000 + b"\r\n", {400, 413, 431}),
    # Lines and fields: RFC 9112 §2.2, §5
    "LF for a line end": ("§2.2", VERSION.replace(b"\r\n", b"\n"), {400}),
    "CR for a line end": ("§2.2", VERSION.replace(b"\r\n", b"\r"), {400, 408}),
    "LF after a field": ("§2.2", get(fields=b"Host: a\nX: y\r\n"), {400}),
    "CR in a field": ("§2.2", get(fields=HOST + b"X: y\rz\r\n"), {400}),
    "a space before the colon": ("§5.1", get(fields=b"Host : a\r\n"), {400}),
    "a folded field": ("§5.2", get(fields=HOST + b"X: y\r\n z\r\n"), {400}),
    "a space before the first field": ("§2.2", get(fields=b" Host: a\r\n"), {400}),
    "a NUL in a value": ("§5", get(fields=HOST + b"X: y\0z\r\n"), {400}),
    "a NUL in a name": ("§5", get(fields=HOST + b"X\0: y\r\n"), {400}),
    "a control character in a value": ("§5", get(fields=HOST + b"X: y\x01z\r\n"), {400}),
    "a field without a name": ("§5", get(fields=HOST + b": y\r\n"), {400}),
    "a field without a colon": ("§5", get(fields=HOST + b"Xyz\r\n"), {400}),
    # Sizes: RFC 6585 §5, RFC 9110 §15.5.15
    "a field of a megabyte": ("RFC 6585 §5", get(fields=HOST + b"X: " + b"a" * 1_000_000 + b"\r\n"), {431}),
    "a name of a megabyte": ("RFC 6585 §5", get(fields=HOST + b"X" * 1_000_000 + b": a\r\n"), {431}),
    "twenty thousand fields": ("RFC 6585 §5", get(fields=HOST + b"X: a\r\n" * 20_000), {431}),
    "a hundred and one fields": ("RFC 6585 §5", get(fields=HOST + b"X: a\r\n" * 100), {431}),
    "a long target": ("RFC 9110 §15.5.15", get(b"/" + b"a" * 9000), {414}),
    "a target of a megabyte": ("RFC 9110 §15.5.15", get(b"/" + b"a" * 1_000_000), {414, 431}),
    # The request line: RFC 9112 §2.3, §3
    "HTTP/0.9": ("§2.3", b"GET /api/version\r\n", {400, 408}),
    "HTTP/0.9 that says so": ("§2.3", get(version=b"HTTP/0.9"), {400, 505}),
    "HTTP/1.2": ("§2.3", get(version=b"HTTP/1.2"), {400, 505}),
    "HTTP/2 without its preface": ("§2.3", get(version=b"HTTP/2.0"), {400, 505}),
    "the preface of HTTP/2": ("§2.3", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "TLS": ("§3", bytes.fromhex("16030102000100") + b"\0" * 200, {400}),
    "a method in small letters": ("§3.1", b"get /api/version HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    "an unknown method": ("§3.1", b"JEFF /api/version HTTP/1.1\r\n" + HOST + b"\r\n", {400, 501}),
    "a space in the target": ("§3.2", get(b"/api/ver sion"), {400}),
    "tabs for spaces": ("§3", VERSION.replace(b" ", b"\t", 2), {400}),
    "a fragment": ("§3.2", get(b"/api/version#x"), {400}),
    "a target that is no ASCII": ("§3.2", get("/api/versión".encode()), {400}),
    "a file": ("§3.2.2", get(b"file:///etc/passwd"), {400}),
    "an authority": ("§3.2.3", get(b"parshall.example:80"), {400}),
    "CONNECT": ("§3.2.3", b"CONNECT parshall.example:80 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}),
    "an asterisk that is no OPTIONS": ("§3.2.4", get(b"*"), {400}),
    # The host: RFC 9112 §3.2
    "no host": ("§3.2", get(fields=b""), {400}),
    "two hosts": ("§3.2", get(fields=HOST + b"Host: other.example\r\n"), {400}),
    "an empty host": ("§3.2", get(fields=b"Host:\r\n"), {400}),
    "a host that is none": ("§3.2", get(fields=b"Host: a/b@c\r\n"), {400}),
    "a host with markup": ("§3.2", get(fields=b'Host: a"><script>\r\n'), {400}),
}
TAKEN: dict[str, tuple[str, bytes, int]] = {
    "a whole URL, whatever the host": ("§3.2.2", get(b"http://other.example/api/version"), 200),
    "an asterisk of OPTIONS": ("§3.2.4", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
    "an empty line first": ("§2.2", b"\r\n" + VERSION, 200),
    "a body that nobody asked for": ("§6", get(fields=HOST + b"Content-Length: 5\r\n") + b"hello", 200),
    "another field's name": ("§5", sized(b"Transfer_Encoding: chunked", b"Content-Length: 42", body=WRONG), 401),
    "a chunk with an extension": ("§7.1.1", CHUNKED + b"2a;a=b\r\n" + WRONG + b"\r\n" + END, 401),
    "a token in a trailer": ("§7.1.2", CHUNKED + b"2a\r\n" + WRONG + b"\r\n0\r\nAuthorization: Bearer x\r\n\r\n", 401),
}
"""What RFC 9112 allows: answered, and the connection stays in step."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Deployment]]:
    seconds = {"REQUEST_HEAD_SECONDS": str(HEAD), "REQUEST_BODY_SECONDS": str(BODY)}
    with deployed(tmp_path_factory.mktemp("home"), **seconds) as made:
        yield made


BODIES = {"auth": "/api/auth/login", "accounting": "/api/credits/check", "chat": "/api/chat/sessions"}
"""Where each service takes a body; 401 where that is all that is wrong."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where the services are apart, each is asked; in one process they are one."""
    if "service" in metafunc.fixturenames:
        apart = metafunc.config.getoption("topology") != "one"
        metafunc.parametrize("service", list(BODIES) if apart else ["auth"], scope="module")


@pytest.fixture
def url(site: tuple[Server, Deployment], service: str) -> str:
    found: str = getattr(site[1], service)
    return found


@pytest.fixture
def line(url: str) -> Iterator[Line]:
    made = Line(url)
    yield made
    made.close()


def to(service: str, raw: bytes) -> bytes:
    """The same, where that service takes a body."""
    return raw.replace(b"/api/auth/login", BODIES[service].encode())


@pytest.mark.parametrize("name", REFUSED)
def test_what_http_forbids_is_refused_and_the_connection_closed(line: Line, service: str, name: str) -> None:
    _, raw, statuses = REFUSED[name]
    line.say(to(service, raw))
    line.say(VERSION)  # smuggled, if anybody takes it for a request
    heard = line.to_end()
    if heard or len(raw) < 100_000:  # the end may overtake the answer while the client still sends
        assert int(heard.split(b" ", 2)[1]) in statuses, heard[:200]
    assert len(STATUS.findall(heard)) <= 1


@pytest.mark.parametrize("name", TAKEN)
def test_what_http_allows_is_answered_and_the_connection_stays_in_step(
    site: tuple[Server, Deployment], line: Line, service: str, name: str
) -> None:
    _, raw, status = TAKEN[name]
    line.say(to(service, raw) + VERSION)
    answers = line.answers(2)
    assert len(answers) == 2, (line.heard, site[0].output[-5:])
    first, second = answers
    assert first.status == status
    assert (second.status, second.json()["service"]) == (200, service if site[0].split else "parshall")


def test_an_upgrade_is_not_followed_and_ends_the_connection(line: Line) -> None:
    line.say(
        get(fields=HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + VERSION
    )
    assert line.to_end().count(b"HTTP/1.1 200") == 1


def test_pipelined_requests_are_answered_in_order(line: Line) -> None:
    line.say(VERSION + get(b"/api/nowhere") + VERSION)
    assert [each.status for each in line.answers(3)] == [200, 404, 200]


def test_what_is_malformed_does_not_cut_the_answer_before_it(site: tuple[Server, Deployment]) -> None:
    caller = site[0].customer("piper")
    session = caller.session()
    line = Line(site[1].chat)
    body = b'{"message":"fake-n20-ms30"}'
    head = f"POST /api/chat/sessions/{session}/stream HTTP/1.1\r\nAuthorization: Bearer {caller.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    line.say(head.encode() + HOST + b"\r\n" + body)
    while b"event: chunk" not in line.heard:
        assert line.hear(), line.heard
    line.say(b"GARBAGE\r\n\r\n")
    line.to_end()
    (answer,) = line.answers(1)
    assert (answer.status, answer.body.count(b"event: chunk"), answer.body.count(b"event: done")) == (200, 20, 1)
    assert len(STATUS.findall(line.heard)) == 1
    line.close()


def test_the_refusal_of_a_request_line_is_a_problem_that_no_browser_guesses_at(line: Line) -> None:
    line.say(get(fields=b""))
    line.to_end()
    (answer,) = line.answers(1)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["connection"] == "close"
    assert answer.json()["status"] == answer.status == 400


def test_a_connection_is_given_less_than_ten_seconds_to_ask() -> None:
    assert HEAD_SECONDS < 10
    assert BODY_SECONDS <= 30


DRIPS = {
    "nothing": (b"", b""),
    "a request line": (b"GET /", b"a"),
    "fields": (VERSION[:-2] + b"X", b"x"),
    "empty lines": (b"", b"\r\n"),
    "a body": (LOGIN + b"Content-Length: 1000\r\n\r\n", b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "after a request": (VERSION, b"\r\n"),
}


def test_two_hundred_that_never_ask_are_closed_in_time_while_others_are_served(
    site: tuple[Server, Deployment], service: str, url: str
) -> None:
    caller = site[0].customer(f"patient-{service}")
    session, answers = caller.session(), []
    streaming = threading.Thread(target=lambda: answers.append(caller.ask(session, "fake-n40-ms100")))
    streaming.start()
    began = time.monotonic()
    lines = [(Line(url), drip) for _, (_, drip) in zip(range(200), itertools.cycle(DRIPS.items()), strict=False)]
    for line, (first, _) in lines:
        line.say(to(service, first))
    slowest = 0.0
    while any(not line.has_ended() for line, _ in lines):
        assert time.monotonic() - began < 2 * (HEAD + BODY) + 1, [d for line, d in lines if not line.ended][:5]
        asked = time.monotonic()
        assert status_of_version(url) == 200
        slowest = max(slowest, time.monotonic() - asked)
        for line, (_, more) in lines:
            if not line.ended and more:
                line.say(more)
        time.sleep(0.2)
    streaming.join()
    assert slowest < 2
    assert len(text_of(answers[0])) > 40, "a stream that runs is not a request that is late"
    for line, _ in lines:
        line.close()


def status_of_version(url: str) -> int:
    line = Line(url)
    line.say(VERSION)
    (answer,) = line.answers(1)
    line.close()
    return answer.status


def test_a_connection_between_requests_is_closed_too(line: Line) -> None:
    line.say(VERSION)
    line.answers(1)
    assert wait_until(line.has_ended, 8) < 7


def test_a_body_that_is_too_large_is_refused_and_not_read_for_ever(line: Line, service: str) -> None:
    line.say(to(service, sized(b"Content-Length: 9999999999", body=b"{")))
    (answer,) = line.answers(1)
    assert answer.status == 413
    wait_until(line.has_ended, BODY + 6)
