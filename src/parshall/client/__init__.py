"""The Python client: login, streams that resume by themselves, credits."""

from parshall.client.api import Client
from parshall.client.errors import ApiError, ClientError, StreamLost, Unreachable
from parshall.client.model import Account, Balance, Receipt, StreamEvent
from parshall.client.stream import Retry, Stream

__all__ = [
    "Account",
    "ApiError",
    "Balance",
    "Client",
    "ClientError",
    "Receipt",
    "Retry",
    "Stream",
    "StreamEvent",
    "StreamLost",
    "Unreachable",
]
