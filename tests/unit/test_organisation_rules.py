"""Laws of a member's limits, without I/O: what counts, on which day and in which month, and what a limit leaves."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from parshall.accounting.organisation import Member, joining
from parshall.kernel.clock import DAY, SECOND, calendar_month
from parshall.kernel.ids import UserId

NEW_YEAR = 20_454 * DAY
"""2026-01-01T00:00:00Z."""
PLENTY = 10**15

limits = st.none() | st.integers(0, 100)
steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "grow", "end", "wait"]),
        st.integers(0, 9),
        st.integers(0, 60),
        st.sampled_from([-2 * DAY, -SECOND, 0, SECOND, DAY // 2, DAY, 20 * DAY, 40 * DAY]),
    ),
    max_size=40,
)


@dataclass
class Stream:
    """What a stream of the member holds or has cost, and the day on which it counts."""

    amount: int = 0
    day: int = 0
    runs: bool = True


def member(*, day: int | None = None, month: int | None = None, total: int | None = None) -> Member:
    made = joining(UserId("ann"), "org", member_id="one", at=NEW_YEAR)
    made.limit_day, made.limit_month, made.limit_total = day, month, total
    return made


def take(made: Member, stream: Stream, wanted: int, *, at: int) -> None:
    """As a reservation or an extension does: as much of what is wanted as the limits leave."""
    more = min(wanted, made.drawable(PLENTY, at=at, held=stream.amount, on=stream.day))
    if more:
        stream.day = made.count(was=stream.amount, now=stream.amount + more, on=stream.day, at=at)
        stream.amount += more


def end(made: Member, stream: Stream, cost: int, *, at: int) -> None:
    stream.day = made.count(was=stream.amount, now=min(cost, stream.amount), on=stream.day, at=at)
    stream.amount, stream.runs = min(cost, stream.amount), False


def check_counts(made: Member, streams: list[Stream]) -> None:
    """The counts are the sums over streams, and none is past its limit."""
    assert made.month == calendar_month(made.day * DAY)
    today = sum(each.amount for each in streams if each.day == made.day)
    this_month = sum(each.amount for each in streams if calendar_month(each.day * DAY) == made.month)
    assert (made.day_used, made.month_used) == (today, this_month)
    assert made.total_used == sum(each.amount for each in streams)
    for limit, used in (
        (made.limit_day, made.day_used),
        (made.limit_month, made.month_used),
        (made.limit_total, made.total_used),
    ):
        assert used >= 0 and (limit is None or used <= limit)


@given(day=limits, month=limits, total=limits, asked=steps)
def test_no_limit_is_ever_passed_whatever_streams_do_and_wherever_the_clock_goes(
    day: int | None, month: int | None, total: int | None, asked: list[tuple[str, int, int, int]]
) -> None:
    made, at, streams = member(day=day, month=month, total=total), NEW_YEAR, list[Stream]()
    for action, which, amount, passed in asked:
        at = max(at + passed, 0)
        running = [each for each in streams if each.runs]
        if action == "open":
            streams.append(Stream())
            take(made, streams[-1], amount, at=at)
        elif running and action == "grow":
            take(made, running[which % len(running)], amount, at=at)
        elif running and action == "end":
            end(made, running[which % len(running)], amount, at=at)
        check_counts(made, streams)


def test_a_new_day_gives_the_limit_of_the_day_anew_and_leaves_month_and_total() -> None:
    made, stream = member(day=10, month=15), Stream()
    take(made, stream, 10, at=NEW_YEAR)
    assert made.left(at=NEW_YEAR + DAY - 1) == 0
    assert made.left(at=NEW_YEAR + DAY) == 5
    assert (made.day_used, made.month_used, made.total_used) == (0, 10, 10)


def test_a_new_month_gives_the_limit_of_the_month_anew() -> None:
    made = member(month=10, total=12)
    take(made, Stream(), 10, at=NEW_YEAR)
    assert made.left(at=NEW_YEAR + 31 * DAY - 1) == 0
    assert made.left(at=NEW_YEAR + 31 * DAY) == 2


def test_what_a_stream_gives_back_does_not_count() -> None:
    made, stream = member(day=10), Stream()
    take(made, stream, 10, at=NEW_YEAR)
    end(made, stream, 3, at=NEW_YEAR)
    assert made.left(at=NEW_YEAR) == 7


def test_what_yesterdays_stream_gives_back_is_nothing_gained_today() -> None:
    made, old, new = member(day=10), Stream(), Stream()
    take(made, old, 10, at=NEW_YEAR)
    take(made, new, 10, at=NEW_YEAR + DAY)
    end(made, old, 0, at=NEW_YEAR + DAY)
    assert made.left(at=NEW_YEAR + DAY) == 0


def test_a_stream_that_grows_beyond_midnight_counts_whole_on_the_new_day() -> None:
    made, stream = member(day=10), Stream()
    take(made, stream, 8, at=NEW_YEAR)
    take(made, stream, 8, at=NEW_YEAR + DAY)
    assert (stream.amount, made.day_used, made.total_used) == (10, 10, 10)


def test_a_clock_that_runs_backward_opens_no_day_twice() -> None:
    made = member(day=10)
    take(made, Stream(), 10, at=NEW_YEAR + DAY)
    assert made.left(at=NEW_YEAR) == 0
    made.limit_day = 15
    take(made, Stream(), 5, at=NEW_YEAR)
    assert made.left(at=NEW_YEAR + DAY) == 0


def test_a_limit_lowered_below_what_is_used_leaves_nothing_and_asks_for_nothing_back() -> None:
    made, stream = member(total=10), Stream()
    take(made, stream, 10, at=NEW_YEAR)
    made.limit_total = 4
    assert made.left(at=NEW_YEAR) == 0
    end(made, stream, 3, at=NEW_YEAR)
    assert made.left(at=NEW_YEAR) == 1


def test_without_limits_the_account_alone_decides() -> None:
    made = member()
    take(made, Stream(), PLENTY, at=NEW_YEAR)
    assert (made.left(at=NEW_YEAR), made.drawable(7, at=NEW_YEAR)) == (None, 7)
