"""The memberships of organisations: what counts toward their limits, against the streams that it stands for."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from parshall.accounting.audit import findings as rules
from parshall.accounting.audit.findings import Findings, shown
from parshall.accounting.audit.rows import Row
from parshall.accounting.organisation import month_of


def check_members(rows: Iterator[Row], findings: Findings) -> None:
    """Hold each membership's counts against its streams; `rows` are those of `rows.memberships`.

    A stream counts on the day on which it last reserved, with what it holds while it runs and then with what it cost.
    """
    for _, of_one in groupby(rows, key=itemgetter(1)):
        days = list(of_one)
        organisation_id, _, user_id, day, day_used, month, month_used, total_used, *_ = days[0]
        try:
            counted = [(on, amount) for *_, on, amount in days if on is not None]
            expected = {
                "day": (day_used, sum(amount for on, amount in counted if on == day)),
                "month": (month_used, sum(amount for on, amount in counted if month_of(on) == month)),
                "whole": (total_used, sum(amount for _, amount in counted)),
            }
        except (TypeError, ValueError, OverflowError) as error:
            findings.add(rules.UNREADABLE, str(organisation_id), found=f"{type(error).__name__}: {error}")
            continue
        for span, (used, come_to) in expected.items():
            if used != come_to:
                facts = {"user": user_id, "span": span, "found": shown(used), "expected": shown(come_to)}
                findings.add(rules.MEMBER_USED, organisation_id, **facts)
