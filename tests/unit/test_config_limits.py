"""The options of the limits: what is taken, and what stops the start with a sentence that repeats no password."""

import pytest

from parshall.app.config import load
from parshall.kernel.errors import StartupError
from parshall.kernel.windows import SharedWindows

ADDRESSES = (
    "valkey://localhost",
    "valkey://:secret@localhost:6379/3",
    "redis://user:secret@[::1]:6379/0",
    "valkeys://user:p%40ss@valkey.example.org:6380",
    "rediss://valkey.example.org/1",
)
NO_ADDRESSES = (
    "localhost:6379",
    "http://localhost",
    "valkey://",
    "valkey:///0",
    "valkey://localhost:port",
    "valkey://localhost:0x10",
    "valkey://localhost:70000",
    "valkey://localhost/name",
    "valkey://localhost?db=3",
    "valkey://user:hid@den@localhost",
    "valkey://user:hid/den@localhost",
)


@pytest.mark.parametrize("url", ADDRESSES)
async def test_an_address_of_a_store_is_taken(url: str) -> None:
    assert load(limits_url=url).limits_url == url
    await SharedWindows(url).close()


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_what_is_no_address_of_a_store_stops_the_start(url: str) -> None:
    with pytest.raises(StartupError, match="PARSHALL_LIMITS_URL") as refused:
        load(limits_url=url)
    assert "hid" not in str(refused.value) and "den@" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_streams": 0},
        {"max_streams_per_user": 0},
        {"max_streams_per_user": 1.5},
        {"requests_per_minute": -1},
        {"anonymous_requests_per_minute": "many"},
        {"requests_per_minute": 1_000_001},
    ],
)
def test_a_limit_that_cannot_be_stops_the_start(wrong: dict[str, object]) -> None:
    with pytest.raises(StartupError, match=f"PARSHALL_{next(iter(wrong)).upper()}"):
        load(**wrong)
