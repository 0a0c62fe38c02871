"""A call that was made for a traced request: what was sent, what came back, and what the receiver says it saw."""

import time
from collections.abc import Mapping

import aiohttp

from parshall.kernel import clock, hops
from parshall.kernel.exchange import Document, Pairs, decoded, left_out, milliseconds
from parshall.kernel.fingerprints import DEBUG_HEADER
from parshall.kernel.recording import Recording, unharmed


class Call:
    """One attempt to call a service or a provider. Nothing here fails where the call does not."""

    def __init__(self, recording: Recording, *, to: str, method: str, url: str, kind: str = "call") -> None:
        """It begins now; `to` is the name of whom it is made to, `kind` is `call` or `provider`."""
        self._recording = recording
        self._at = clock.now()
        self._began = time.perf_counter()
        self._told: Document = {"kind": kind, "to": to}
        self._asked: Document = {"method": method, "target": recording.redacted_target(url)}

    def answered(self, response: aiohttp.ClientResponse) -> None:
        """The response is there, at least its head."""
        sent = [(str(name), value) for name, value in response.request_info.headers.items()]
        self.has_come(response.status, _version(response), sent=sent, received=decoded(response.raw_headers))

    def has_come(self, status: int, version: str, *, sent: Pairs, received: Pairs) -> None:
        """A response with that status has come, over HTTP of that version, to a request with those fields."""
        with unharmed("call"):
            self._asked["httpVersion"] = version
            shown = [pair for pair in received if pair[0].lower() != hops.REPORT_HEADER.lower()]
            self._keep(sent, self._reported(sent, received), {"status": status, **self._fields(shown)})

    def lost(self, sent: Mapping[str, str], reason: str) -> None:
        """No response has come."""
        with unharmed("call"):
            self._keep(list(sent.items()), None, None, f"No response: {reason}.")

    def _keep(self, sent: Pairs, hop: Document | None, response: Document | None, *notes: str) -> None:
        took = milliseconds(time.perf_counter() - self._began)
        request = self._asked | self._fields(sent)
        if response is not None:
            response["milliseconds"] = took
        self._recording.called(
            self._told
            | {
                "at": self._at,
                "request": request,
                "response": response,
                "endedMilliseconds": took,
                "hop": hop,
                "faults": [],
                "notes": list(notes),
            }
        )

    def _reported(self, sent: Pairs, received: Pairs) -> Document | None:
        """What was added, lost or changed in between; None where the receiver tells nothing."""
        voucher = next((value for name, value in sent if name == DEBUG_HEADER), None)
        value = next((value for name, value in received if name.lower() == hops.REPORT_HEADER.lower()), None)
        told = None if voucher is None or value is None else hops.read_report(value)
        return None if voucher is None or told is None else hops.compared(sent, received, told, voucher=voucher)

    def _fields(self, fields: Pairs) -> Document:
        return {"headers": self._recording.redacted(fields), "left": left_out(fields)}


def _version(response: aiohttp.ClientResponse) -> str:
    return "1.1" if response.version is None else f"{response.version.major}.{response.version.minor}"
