"""The Python client, blocking and asynchronous: login, streams that resume by themselves, credits, administration."""

from parshall.client.api import AsyncClient, Client
from parshall.client.awaiting import AsyncStream
from parshall.client.blocking import Stream
from parshall.client.calls_chat import new_id
from parshall.client.errors import ApiError, ClientError, InsufficientCredits, StreamLost, Unreachable, WrongStream
from parshall.client.login import Tokens
from parshall.client.model import Account, Balance, Receipt, StreamEvent
from parshall.client.outage import Retry
from parshall.client.records import NewUser, Unlimited

UNLIMITED = Unlimited.UNLIMITED

__all__ = [
    "UNLIMITED",
    "Account",
    "ApiError",
    "AsyncClient",
    "AsyncStream",
    "Balance",
    "Client",
    "ClientError",
    "InsufficientCredits",
    "NewUser",
    "Receipt",
    "Retry",
    "Stream",
    "StreamEvent",
    "StreamLost",
    "Tokens",
    "Unreachable",
    "WrongStream",
    "new_id",
]
