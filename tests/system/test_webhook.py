"""The webhook of a real process: kill -9 between settlement and delivery, the commands, and the page's own example."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import quick
from tests.ledgers import check_ledger
from tests.receiver import HANG, Receiver, Sent, receiving, verified
from tests.serving import PARSHALL, Server, serving, upstream

from parshall.accounting.outbox import LEASE_SECONDS
from parshall.accounting.signing import read_secrets

PAGE = (Path(__file__).parents[2] / "docs" / "EVENTS.md").read_text(encoding="utf-8")
SECRET = "whsec_b2YgdGhlIHRlc3RzIGFsb25l"
KEY = b"of the tests alone"
TAKEN_OVER_SECONDS_MAX = LEASE_SECONDS + 20


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    with upstream() as url:
        yield url


def settings(receiver: Receiver, scripted: str, **more: str) -> dict[str, str]:
    model = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": scripted, "OPENAI_MODELS": "fake,*"}
    hook = {"WEBHOOK_URL": receiver.url, "WEBHOOK_SECRET": SECRET, "LOW_BALANCE_CREDITS": "50"}
    return model | hook | more


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return quick.run(
        [str(PARSHALL), "events", *arguments],
        env=server.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def verify_of_the_page() -> Callable[[str, dict[str, str], bytes], bool]:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(block, scope)
    found: Callable[[str, dict[str, str], bytes], bool] = scope["verify"]
    return found


def test_what_was_settled_before_kill_9_is_delivered_after_the_next_start(scripted: str, tmp_path: Path) -> None:
    with receiving(then=HANG) as receiver, serving(tmp_path, **settings(receiver, scripted)) as server:
        alice = server.customer("alice")
        events = alice.ask(alice.session(), "fake-n5")
        stream_id = events[0].json()["streamingSessionId"]
        (claimed,) = receiver.expect(1, accepted=False)
        server.kill()
        receiver.then = 204
        server.start()
        again = server.user("alice", "alice-password")
        second = again.ask(again.session(), "fake-n5")[0].json()["streamingSessionId"]
        came = receiver.expect(2, seconds=TAKEN_OVER_SECONDS_MAX)
        told = {each.event["subject"]: each for each in came}
        assert set(told) == {stream_id, second}
        assert (told[stream_id].id, told[stream_id].body) == (claimed.id, claimed.body)
        assert all(verified(each, KEY) for each in receiver.sent)
        receipt = again.get(f"/api/streaming-sessions/{stream_id}/receipt")
        data = told[stream_id].event["data"]
        assert data.pop("userId") == receipt["accountId"]
        assert data == receipt
        assert command(server, "list", "--json").stdout.strip() == "[]"
        assert server.stop()[0] == 0
    check_ledger(tmp_path / "accounting.db")


def test_a_grant_that_expires_soon_is_told_by_a_running_server_and_a_low_balance_too(
    scripted: str, tmp_path: Path
) -> None:
    with receiving() as receiver, serving(tmp_path, **settings(receiver, scripted)) as server:
        server.customer("alice", credits=60).close()
        server.user("alice", "alice-password").post("/api/credits/deduct", {"credits": 20})
        (low,) = receiver.expect(1)
        assert (low.event["type"], low.event["data"]["availableCredits"]) == ("dev.parshall.balance.low", 40)
        admin = server.user()
        grant = admin.post("/api/credits/allocate", {"userId": "alice", "credits": 5, "expiryDays": 1}, expect=201)
        server.stop()
        server.start()  # the first sweep after a start looks for grants
        _, expiring = receiver.expect(2)
        assert expiring.event["type"] == "dev.parshall.grant.expiring"
        assert (expiring.event["subject"], expiring.event["data"]["remainingCredits"]) == (grant["id"], 5)


def test_what_was_given_up_is_listed_and_retried_from_the_command_line(scripted: str, tmp_path: Path) -> None:
    with receiving(410) as receiver, serving(tmp_path, **settings(receiver, scripted)) as server:
        alice = server.customer("alice")
        alice.ask(alice.session(), "fake-n5")
        receiver.expect(1, accepted=False)
        deadline = time.monotonic() + 20
        while "given up" not in (listed := command(server, "list").stdout):
            assert time.monotonic() < deadline, listed
        assert "stream.settled" in listed and "HTTP 410" in listed
        assert command(server, "retry", "unknown").returncode == 1
        assert command(server, "retry").stdout == "1 event is due again.\n"
        receiver.expect(1)


def test_the_test_command_says_what_the_receiver_answers(scripted: str, tmp_path: Path) -> None:
    with receiving(200, 503) as receiver:
        server = Server(home=tmp_path, settings=settings(receiver, scripted))
        good, bad = command(server, "test"), command(server, "test")
        assert (good.returncode, good.stdout) == (0, "The receiver took it: HTTP 200.\n")
        assert bad.returncode == 1 and "HTTP 503" in bad.stderr and len(bad.stderr.splitlines()) == 1
        assert [each.event["type"] for each in receiver.sent] == ["dev.parshall.test"] * 2
        assert all(verified(each, KEY) for each in receiver.sent)
        del server.settings["WEBHOOK_URL"]
        nowhere = command(server, "test")
        assert nowhere.returncode == 1 and "PARSHALL_WEBHOOK_URL" in nowhere.stderr


def test_the_example_of_the_page_believes_what_parshall_sends_and_nothing_else(scripted: str, tmp_path: Path) -> None:
    verify = verify_of_the_page()
    with receiving() as receiver:
        server = Server(home=tmp_path, settings=settings(receiver, scripted, WEBHOOK_SECRET=f"{SECRET},a second"))
        assert command(server, "test").returncode == 0
        (sent,) = receiver.sent
    headers = dict(sent.headers)
    assert verify(SECRET, headers, sent.body) and verify("a second", headers, sent.body)
    assert not verify("another", headers, sent.body)
    assert not verify(SECRET, headers, sent.body + b" ")
    assert not verify(SECRET, {}, sent.body)
    for name, value in (("webhook-id", "x"), ("webhook-timestamp", "soon"), ("webhook-signature", "v1,ü")):
        assert not verify(SECRET, headers | {name: value}, sent.body), name
    assert not verify(SECRET, signed_long_ago(sent), sent.body)


def signed_long_ago(sent: Sent) -> dict[str, str]:
    """Headers whose signature is right and whose time is not."""
    from parshall.accounting.signing import signatures

    then = int(time.time()) - 3600
    signature = signatures(read_secrets(SECRET), id=sent.id, timestamp=then, body=sent.body)
    return dict(sent.headers) | {"webhook-timestamp": str(then), "webhook-signature": signature}
