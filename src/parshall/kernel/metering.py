"""The values that chat and accounting exchange about one stream: usage, slices and settlements.

Those that every operation of the ledger makes are structs, which cost a fifth of a frozen dataclass to make.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from parshall.kernel.credits import Credits


class UsageSource(StrEnum):
    """Who says how many tokens were used."""

    PROVIDER = "provider"
    COUNTED = "counted"
    LOG = "log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one turn. The input includes `cached_input_tokens`, the output includes `reasoning_tokens`."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        """Hold the inclusions that pricing relies on."""
        assert 0 <= self.cached_input_tokens <= self.input_tokens
        assert 0 <= self.reasoning_tokens <= self.output_tokens

    def wire(self) -> dict[str, int]:
        """The camelCase members of a wire `usage`."""
        return {
            "inputTokens": self.input_tokens,
            "cachedInputTokens": self.cached_input_tokens,
            "outputTokens": self.output_tokens,
            "reasoningTokens": self.reasoning_tokens,
        }


class Slice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What accounting has granted a stream so far (RFC 8506's Granted-Service-Unit).

    `reserved` is the whole reservation in microcredits, `output_tokens` all output it pays for. `final` means that no
    more can be had: the balance or the turn's own limit ends here.
    """

    reserved: Credits
    output_tokens: int
    expires_at: int
    final: bool


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a reservation ended, in microcredits. `uncollected` is what usage cost beyond all that could be charged."""

    outcome: str
    reserved: Credits
    charged: Credits
    returned: Credits
    uncollected: Credits
    balance_after: Credits
    price_version: str
    transfers: tuple[int, ...]

    def stored(self) -> dict[str, Any]:
        """The settlement as JSON to be kept beside a stream: microcredits, snake_case; `restore` reads it."""
        return {name: getattr(self, name) for name in self.__struct_fields__} | {"transfers": list(self.transfers)}

    @staticmethod
    def restore(stored: dict[str, Any]) -> "Settlement":
        """The inverse of `stored`."""
        return Settlement(**{**stored, "transfers": tuple(stored["transfers"])})
