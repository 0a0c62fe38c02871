"""What the documents promise, kept: the README's lines work as they stand, and what the pages name exists."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.front import one_address
from tests.serving import serving

from parshall.kernel.credits import parse_credits, wire
from parshall.kernel.errors import ParshallError
from parshall.kernel.sse import Event, parse

pytestmark = pytest.mark.executed("what the README starts is what users start")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
URL = "http://127.0.0.1:8000"
WALK_SECONDS_MAX = 100


def section(title: str) -> str:
    """The README's section of that title."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title!r}"
    return found[1]


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def answer_shown() -> str:
    """The answer that the README shows; what it leaves out is marked with an ellipsis."""
    (block,) = re.findall(r"^```\n(HTTP/1\.1 200.*?)^```", section("A first answer"), re.MULTILINE | re.DOTALL)
    return str(block)


def shown() -> bytes:
    """Its events, as bytes of a stream."""
    return answer_shown().partition("\n\n")[2].encode() + b"\n\n"


def fields(answer: str) -> list[str]:
    """The names of its headers, in their order."""
    return [line.partition(":")[0] for line in answer.partition("\n\n")[0].splitlines()[1:]]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What each block of the first answer printed, run in one shell against a server as `make up` starts it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    limits = {"REQUESTS_PER_MINUTE": "3000", "ANONYMOUS_REQUESTS_PER_MINUTE": "300"}  # as they are by default
    with (
        serving(folder / "home", "--demo", **limits) as server,
        one_address(server, folder / "front") as url,
    ):
        blocks = [block.replace(URL, url) for block in shell_blocks(section("A first answer"))]
        script = "set -eu -o pipefail\n" + "printf '\\f'\n".join(blocks)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=kept | {"PARSHALL_URL": url},
            capture_output=True,
            text=True,
            timeout=WALK_SECONDS_MAX,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        yield ran.stdout.split("\f")


def events(text: str) -> list[Event]:
    """The events of a response that curl printed, with or without its headers."""
    return list(parse([text.partition("\n\n")[2].encode() if text.startswith("HTTP/") else text.encode()]))


@pytest.mark.one_process("the headers that the README shows are those of a server without a proxy")
def test_the_walk_streams_a_whole_answer_under_an_id_that_comes_first(walk: list[str]) -> None:
    answer = walk[1].replace("\r\n", "\n")
    status, first, *_ = answer.splitlines()
    came = events(answer)
    assert status == "HTTP/1.1 200 OK"
    assert fields(answer) == fields(answer_shown())
    assert first.partition(": ")[::2] == ("x-streaming-session-id", came[0].json()["streamingSessionId"])
    assert [event.event for event in came[:2]] == ["session", "model"]
    assert came[-1].event == "done" and came[-1].json()["status"] == "complete"
    assert "".join(event.json()["text"] for event in came if event.event == "chunk").strip()


def test_the_walk_charges_what_the_receipt_says_and_resumes_byte_for_byte(walk: list[str]) -> None:
    answer, balance, rest, receipt, chat = walk[1:]
    charged = events(answer.replace("\r\n", "\n"))[-1].json()["receipt"]["chargedCredits"]
    assert charged > 0
    left = wire(parse_credits(100) - parse_credits(charged))
    assert f'"totalCredits":{left},"availableCredits":{left},"reservedCredits":0' in balance
    assert events(rest)[0].id == "6" and answer.replace("\r\n", "\n").endswith(rest)
    assert f'"chargedCredits":{charged}' in receipt
    assert [kind for kind in ("grant", "reserve", "charge", "release") if f'"kind":"{kind}"' not in receipt] == []
    assert chat.strip()


def test_the_numbers_that_the_readme_tells_are_those_of_the_answer_that_it_shows() -> None:
    came = list(parse([shown()]))
    receipt = came[-1].json()["receipt"]
    told = section("What happened to the credits")
    assert came[0].json()["reservedCredits"] == receipt["reservedCredits"]
    for amount in ("reservedCredits", "chargedCredits", "returnedCredits", "balanceAfter"):
        assert str(receipt[amount]) in told, amount
    assert f"{receipt['inputTokens']} " in told and f"{receipt['outputTokens']} " in told
    paid = parse_credits(receipt["chargedCredits"]) + parse_credits(receipt["returnedCredits"], allow_zero=True)
    assert paid == parse_credits(receipt["reservedCredits"])


def test_every_test_and_file_that_a_page_names_exists() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    laws = {law for source in sources for law in re.findall(r"def (test_\w+)\(", source)}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = {law for law in re.findall(r"`(test_\w+)`", text) if "…" not in law}
        files = re.findall(r"`((?:src|tests|docs|bench)/[\w/]+\.\w+)`", text)
        assert named - laws == set(), page.name
        assert [name for name in files if not (ROOT / name).is_file()] == [], page.name


def test_every_code_that_a_caller_can_meet_is_in_the_protocol() -> None:
    protocol = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    served = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name not in ("client", "audit")]
    sources = [path.read_text(encoding="utf-8") for path in served]
    codes = {code for source in sources for code in re.findall(r'\bcode(?:: ClassVar\[str\])? ?= ?"([a-z_]+)"', source)}
    assert {ParshallError.code, "stream_active", "provider_cut"} <= codes
    assert [code for code in sorted(codes) if f"`{code}`" not in protocol] == []
