"""What clients ask of a ledger, as plain values that can be sent again, to any replica and from any process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from parshall.accounting.changes import Terms
from parshall.accounting.combine import Operation
from parshall.accounting.once import Once
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.credits import Credits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

ROOT = UserId("root")
STREAM_KINDS = ("reserve", "reserve_whole", "extend", "reprice", "settle", "void")
RESERVES = ("reserve", "reserve_whole")


@dataclass(eq=False, kw_only=True)
class Request:
    """One request; sent again it is the same. `id` is its stream's or its key; the arguments are JSON values."""

    kind: str
    id: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        step = f"#{self.arguments['step']}" if self.kind == "extend" else ""
        return f"{self.kind} {self.id.rpartition('-')[2].lstrip('0')}{step}"

    @property
    def keyed(self) -> bool:
        return self.kind not in (*STREAM_KINDS, "sweep")

    def other(self) -> "Request | None":
        """The same id or key with another body (M4); a void has none."""
        member = {"reserve": "input_tokens", "reserve_whole": "tokens", "extend": "output_tokens", "price": "output"}
        arguments = dict(self.arguments)
        if self.kind == "settle":
            arguments["usage"] = arguments["usage"] | {"output_tokens": arguments["usage"]["output_tokens"] + 1}
        elif self.kind in ("void", "sweep"):
            return None
        else:
            arguments[member.get(self.kind, "amount")] += 1
        return Request(kind=self.kind, id=self.id, arguments=arguments)

    def stored(self) -> str:
        return json.dumps({"kind": self.kind, "id": self.id, "arguments": self.arguments})

    @staticmethod
    def restore(text: str) -> "Request":
        return Request(**json.loads(text))


async def perform(ledger: Accounting, request: Request) -> Any:
    """What the ledger answers. Raises what it raises."""
    arguments, stream_id = request.arguments, StreamId(request.id)
    match request.kind:
        case "reserve":
            return await ledger.reserve(stream_id=stream_id, **arguments)
        case "reserve_whole":
            return await ledger.reserve_whole(stream_id=stream_id, **arguments)
        case "extend":
            return await ledger.extend(stream_id=stream_id, **arguments)
        case "reprice":
            return await ledger.reprice(stream_id=stream_id, **arguments)
        case "settle":
            usage, source = Usage(**arguments["usage"]), UsageSource(arguments["source"])
            return await ledger.settle(stream_id=stream_id, usage=usage, source=source, outcome=arguments["outcome"])
        case "void":
            return await ledger.void(stream_id=stream_id)
        case "sweep":
            return await ledger.expire_due()
    once = Once.of(arguments, caller=ROOT, operation=request.kind, key=request.id)
    return await ledger.answer_once(changing(ledger, request), render=rendered, status=201, once=once)


def changing(ledger: Accounting, request: Request) -> Operation[Any]:
    """The operation of a keyed change. Its key is its note, so that the books tell what it did."""
    arguments = request.arguments
    if request.kind == "price":
        price = Price(**{name: arguments[name] for name in Price.__slots__})
        return ledger.prices.putting(arguments["model_id"], price, set_by=request.id)
    account, amount = arguments["account"], Credits(arguments["amount"])
    if request.kind == "deduct":
        return ledger.deducting(account, amount, note=request.id)
    terms = Terms(expires_at=arguments["expires_at"], granted_by=ROOT, priority=arguments["priority"], notes=request.id)
    change: Callable[..., Operation[Any]] = {
        "allocate": ledger.allocating,
        "set": ledger.setting,
        "adjust": ledger.adjusting,
        "remove": lambda account, amount, terms: ledger.adjusting(account, -amount, terms),
    }[request.kind]
    return change(account, amount, terms)


def rendered(value: Any) -> str:
    return msgspec.json.encode(value).decode()
