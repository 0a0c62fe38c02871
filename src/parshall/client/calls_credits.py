"""Calls to accounting: balances, statements, prices, usage, and changes of credits."""

from datetime import date, datetime
from decimal import Decimal

from parshall.client import records
from parshall.client.addresses import segment
from parshall.client.asked import Asks, asked
from parshall.client.core import Ask
from parshall.client.model import Balance
from parshall.client.records import Amount, Changed, Checked, Entry, Grant, Page, Price, Running, Used
from parshall.client.steps import Steps


class CreditCalls(Asks):
    """What one asks of accounting. Where a `user` may be named, by id, username or e-mail, it takes a supervisor.

    Changes carry an idempotency key, so that a lost answer costs nothing; give one of your own to repeat a change
    from another process.
    """

    @asked
    def balance(self, user: str | None = None) -> Steps[Balance]:
        """The user's credits."""
        return self._core.call(Ask(method="GET", path=_of("/credits/balance", user)), Balance.read)

    @asked
    def check(self, credits: Amount) -> Steps[Checked]:
        """Whether so many credits can be paid now."""
        ask = Ask(method="POST", path="/credits/check", body={"requiredCredits": credits})
        return self._core.call(ask, records.of(Checked), repeatable=True)

    @asked
    def price(self, model_id: str, *, input_tokens: int = 0, output_tokens: int = 0) -> Steps[Decimal]:
        """What so many tokens of a model cost now, in credits."""
        body = {"modelId": model_id, "inputTokens": input_tokens, "outputTokens": output_tokens}
        ask = Ask(method="POST", path="/credits/calculate", body=body)
        return self._core.call(ask, records.member("credits", Decimal), repeatable=True)

    @asked
    def prices(self) -> Steps[list[Price]]:
        """The price of each model in force, and those to come."""
        return self._core.call(Ask(method="GET", path="/prices"), records.member("prices", list[Price]))

    @asked
    def set_price(
        self,
        model_id: str,
        *,
        input: Amount,
        output: Amount,
        cached_input: Amount | None = None,
        reasoning: Amount | None = None,
        effective_from: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Price]:
        """Set a model's price in credits per million tokens, from now or some later instant on. For administrators."""
        body = {
            "modelId": model_id,
            "input": input,
            "output": output,
            "cachedInput": cached_input,
            "reasoning": reasoning,
            "effectiveFrom": None if effective_from is None else effective_from.isoformat(),
        }
        return self._change("PUT", "/prices", body, idempotency_key, records.of(Price))

    @asked
    def statement(self, user: str | None = None, *, after: int = 0, limit: int = 100) -> Steps[Page[Entry]]:
        """The account's entries, oldest first, from behind the entry `after`."""
        ask = Ask(method="GET", path=_of("/credits/statement", user), query={"after": after, "limit": limit})
        return self._core.call(ask, records.page("entries", Entry))

    @asked
    def grants(self, *, after: str | None = None, limit: int = 500) -> Steps[Page[Grant]]:
        """Every user's grants, oldest first. For supervisors."""
        ask = Ask(method="GET", path="/credits/allocations/all", query={"after": after, "limit": limit})
        return self._core.call(ask, records.page("allocations", Grant))

    @asked
    def usage(
        self, user: str | None = None, *, since: date | datetime | None = None, until: date | datetime | None = None
    ) -> Steps[Used]:
        """What the user has used; of the last 30 days where no span is given."""
        return self._core.call(_report(_of("/usage/stats", user), since, until), records.of(Used))

    @asked
    def usage_of_all(
        self, *, since: date | datetime | None = None, until: date | datetime | None = None
    ) -> Steps[Used]:
        """What everybody has used. For administrators."""
        return self._core.call(_report("/usage/system-stats", since, until), records.of(Used))

    @asked
    def running(self, user: str | None = None) -> Steps[list[Running]]:
        """The user's streams that hold credits now, newest first."""
        ask = Ask(method="GET", path=_of("/streaming-sessions/active", user))
        return self._core.call(ask, records.member("items", list[Running]))

    @asked
    def running_of_all(self) -> Steps[list[Running]]:
        """Everybody's streams that hold credits now, newest first. For administrators."""
        ask = Ask(method="GET", path="/streaming-sessions/active/all")
        return self._core.call(ask, records.member("items", list[Running]))

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @asked
    def deduct(self, credits: Amount, *, notes: str = "", idempotency_key: str | None = None) -> Steps[Decimal]:
        """Take credits from the own account for something that is no stream; what remains available."""
        body = {"credits": credits, "notes": notes}
        remaining = records.member("remainingBalance", Decimal)
        return self._change("POST", "/credits/deduct", body, idempotency_key, remaining)

    @asked
    def allocate(
        self,
        user: str,
        credits: Amount,
        *,
        expiry_days: int | None = None,
        priority: int | None = None,
        notes: str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[Grant]:
        """Grant credits to a user; they expire after 30 days where nothing else is said. For supervisors."""
        body = {"userId": user, "credits": credits, "expiryDays": expiry_days, "priority": priority, "notes": notes}
        return self._change("POST", "/credits/allocate", body, idempotency_key, records.of(Grant))

    @asked
    def set_credits(
        self, user: str, credits: Amount, *, notes: str | None = None, idempotency_key: str | None = None
    ) -> Steps[Changed]:
        """Make a user's total come to so many credits. For supervisors."""
        body = {"userId": user, "credits": credits, "notes": notes}
        return self._change("POST", "/credits/set", body, idempotency_key, records.of(Changed))

    @asked
    def adjust(
        self, user: str, credits: Amount, *, notes: str | None = None, idempotency_key: str | None = None
    ) -> Steps[Changed]:
        """Add credits to a user's account, or take them where negative. For supervisors."""
        body = {"userId": user, "adjustment": credits, "notes": notes}
        return self._change("PUT", "/credits/adjust", body, idempotency_key, records.of(Changed))

    @asked
    def remove_credits(
        self, user: str, credits: Amount, *, notes: str | None = None, idempotency_key: str | None = None
    ) -> Steps[Changed]:
        """Take credits back from a user. For supervisors."""
        body = {"userId": user, "credits": credits, "notes": notes}
        return self._change("DELETE", "/credits/remove", body, idempotency_key, records.of(Changed))


def _of(path: str, user: str | None) -> str:
    return path if user is None else f"{path}/{segment(user)}"


def _report(path: str, since: date | None, until: date | None) -> Ask:
    span = {"startDate": since and since.isoformat(), "endDate": until and until.isoformat()}
    return Ask(method="GET", path=path, query={**span})
