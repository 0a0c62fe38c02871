"""What a client of docs/CLIENTS.md is shown and has to prove: one stream, read to the stored text, charged once."""

import re
import uuid
from dataclasses import dataclass

import httpx2
from tests.scripted import Script
from tests.serving import ROOT, Caller

from parshall.kernel.ids import new_stream_id

PAGE = (ROOT / "docs" / "CLIENTS.md").read_text(encoding="utf-8")
QUESTION = "What is the capital of France?"
SCRIPT = "fake-hard-n64-ms8"
CUTS = (1210, 700)
"""Bytes of the body after which the first connections are reset: both lie within an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One stream that a client reads: the words that ask for it, who asks, and as what."""

    caller: Caller
    session: str
    stream: str
    message: str

    @classmethod
    def of(cls, caller: Caller, script: str = SCRIPT) -> "Run":
        """One that nobody has asked for yet."""
        return cls(
            caller=caller,
            session=caller.session(),
            stream=new_stream_id(at=1_620_847_252_000_000),
            message=f"{script} {uuid.uuid4().hex}",
        )


def snippet(title: str, message: str) -> str:
    """The code under that heading, asking something else."""
    part = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\w+\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, title
    return str(blocks[0]).replace(QUESTION, message)


def check_once(run: Run, provider: str) -> str:
    """One question, one answer, one generation, one charge; returns the stored text."""
    receipt = run.caller.ended(run.stream)["receipt"]
    assert httpx2.get(f"{provider}/asked").json().count(run.message) == 1
    question, answer = run.caller.get(f"/api/chat/sessions/{run.session}/messages")["messages"]
    script = Script.of("", run.message)
    assert (question["content"], receipt["outputTokens"]) == (run.message, script.n)
    entries = run.caller.get("/api/credits/statement?limit=500")["entries"]
    charges = [
        each["credits"] for each in entries if (each["streamingSessionId"], each["kind"]) == (run.stream, "charge")
    ]
    assert charges == [receipt["chargedCredits"]]
    text: str = answer["content"]
    assert text == script.text()
    return text
