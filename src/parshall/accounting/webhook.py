"""The operator's webhook over HTTP: one signed POST for each delivery, and what the receiver makes of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import aiohttp
import msgspec

from parshall.accounting.outbox import Delivery
from parshall.accounting.signing import signatures
from parshall.kernel.clock import SECOND, Clock, instant, rfc3339

TYPE_PREFIX = "dev.parshall."
CONTENT_TYPE = "application/cloudevents+json"
ATTEMPT_SECONDS_MAX = 10.0
CONNECT_SECONDS_MAX = 5.0
RETRY_AFTER_DIGITS_MAX = 9

_LOST = (aiohttp.ClientError, OSError, RuntimeError)
"""What a broken connection raises: TimeoutError is an OSError, and aiohttp meets a closed one with a RuntimeError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the receiver said: a status, or None and the problem why there is none; and when it wants to be asked."""

    status: int | None
    problem: str = ""
    retry_after_seconds: int = 0

    @property
    def accepted(self) -> bool:
        """Whether the receiver has taken it."""
        return self.status is not None and 200 <= self.status < 300


class Webhook:
    """Posts to one URL. It follows no redirect, and of an answer it reads no more than status and headers."""

    def __init__(
        self,
        url: str,
        *,
        keys: Sequence[bytes],
        source: str,
        clock: Clock,
        attempt_seconds: float = ATTEMPT_SECONDS_MAX,
    ) -> None:
        """`source` names this deployment in events; an attempt is over after `attempt_seconds`."""
        self._url = url
        self._keys = keys
        self._source = source
        self._clock = clock
        self._attempt_seconds = attempt_seconds
        self._opened: aiohttp.ClientSession | None = None

    async def post(self, delivery: Delivery) -> Answer:
        """Deliver once. Whatever goes wrong outside is an Answer."""
        body = cloud_event(delivery, source=self._source)
        timestamp = self._clock() // SECOND
        headers = {
            "Content-Type": CONTENT_TYPE,
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(self._keys, id=delivery.id, timestamp=timestamp, body=body),
        }
        try:
            async with (
                asyncio.timeout(self._attempt_seconds),
                self._session().post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                later = retry_after_seconds(response.headers.get("Retry-After", ""), at=self._clock())
                return Answer(status=response.status, problem=f"HTTP {response.status}", retry_after_seconds=later)
        except TimeoutError:
            return Answer(status=None, problem="no answer in time")
        except _LOST as error:
            return Answer(status=None, problem=f"no answer ({type(error).__name__})")

    async def close(self) -> None:
        """Close every connection."""
        if self._opened is not None:
            await self._opened.close()

    def _session(self) -> aiohttp.ClientSession:
        """The one session, made on first use: it belongs to the running loop."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                headers={"Accept-Encoding": "identity", "User-Agent": "parshall"},
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._opened


def source_of(issuer: str) -> str:
    """The CloudEvents source of a deployment's accounting: a URI reference below its issuer."""
    return quote(issuer.rstrip("/"), safe=":/?#[]@!$&'()*+,;=%-._~") + "/accounting"


def cloud_event(delivery: Delivery, *, source: str) -> bytes:
    """A CloudEvent in structured mode; the same delivery gives the same bytes."""
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": delivery.id,
            "source": source,
            "type": TYPE_PREFIX + delivery.topic,
            "subject": delivery.subject,
            "time": rfc3339(delivery.at),
            "datacontenttype": "application/json",
            "data": msgspec.Raw(delivery.body.encode()),
        }
    )


def retry_after_seconds(value: str, *, at: int) -> int:
    """What a `Retry-After` asks for, in seconds from the instant `at`; 0 for nothing, and where it makes no sense."""
    if value.isascii() and value.isdecimal():
        return int(value[:RETRY_AFTER_DIGITS_MAX])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0
    return max((instant(moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - at) // SECOND, 0)
