"""Results as tables: medians over rounds, and ratios that are taken within each round before their median is."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
TARGETS = (
    *("provider", "passthrough"),
    *("parshall-before", "parshall", "parshall-valkey-before", "parshall-valkey"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rivals:
    """A column of ratios: of one value to the most of it that any of these configurations had in the same round."""

    title: str
    value: str
    names: Sequence[str]


def line(result: Result) -> str:
    """One result while the work goes on."""
    errors = f"  ERRORS {result['errors']}" if result["errors"] else ""
    return (
        f"round {result['round']}  {result['scenario']:9} {result['target']:16}"
        f"{result['events_per_second']:8.0f} events/s  {result['cpu_us_per_event']:8.1f} us/event"
        f"  cpu {result['cpu_share']:4.0%}"
        f"  first event p99 {_number(result['first_event_p99'])}  under way p50 {_number(result['under_way_p50'])}"
        f"  p99 {_number(result['under_way_p99'])} ms  {result['kib_per_stream']:.0f} KiB/stream{errors}"
    )


def whole(results: Sequence[Result], *, scenarios: Sequence[str]) -> str:
    """All tables, as Markdown."""
    parts = [_costs(results, scenarios), _latencies(results, scenarios)]
    return "\n\n".join(parts)


def ledger(results: Sequence[Result], configurations: Mapping[str, Sequence[Rivals]]) -> str:
    """A row for each configuration of one engine, which all have the same columns of ratios, as Markdown."""
    titles = [each.title for each in next(iter(configurations.values()))]
    times = ["p50 / p99 ms", "reserve at half load", "settle at half load"]
    heads = ["configuration", "pairs/s", *titles, *times, "CPU µs/pair"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, rivals in configurations.items():
        mine = _named(results, [name])
        median = _medians(mine)
        cells = [name, f"{median('pairs_per_second'):.0f} {_span([one['pairs_per_second'] for one in mine], '.0f')}"]
        cells += [_ratio(mine, _most(results, each), each.value) for each in rivals]
        for what in ("full", "half_reserve", "half_settle"):
            cells.append(f"{median(f'{what}_p50'):.2f} / {median(f'{what}_p99'):.2f}")
        cells.append(f"{median('cpu_us_per_pair'):.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _named(results: Sequence[Result], names: Sequence[str]) -> list[Result]:
    return [one for one in results if one["name"] in names]


def _most(results: Sequence[Result], rivals: Rivals) -> list[Result]:
    """Of each round the best of the rivals; nothing where one of them was left out, for it might have been the best."""
    if not {one["name"] for one in results}.issuperset(rivals.names):
        return []
    ordered = sorted(_named(results, rivals.names), key=lambda one: one[rivals.value])
    return list({one["round"]: one for one in ordered}.values())


def _costs(results: Sequence[Result], scenarios: Sequence[str]) -> str:
    rows = [
        "| scenario | server | events/s | streams/s | CPU µs/event | of the pass-through | CPU share | KiB/stream |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scenario in scenarios:
        for target in TARGETS:
            mine = _of(results, scenario, target)
            if mine:
                rows.append(_cost_row(scenario, target, mine, _of(results, scenario, "passthrough")))
    return "\n".join(rows)


def _cost_row(scenario: str, target: str, mine: Sequence[Result], base: Sequence[Result]) -> str:
    median = _medians(mine)
    cells = (
        scenario,
        target,
        f"{median('events_per_second'):.0f}",
        f"{median('streams_per_second'):.1f}",
        f"{median('cpu_us_per_event'):.1f} {_span([one['cpu_us_per_event'] for one in mine])}",
        _ratio(mine, base, "cpu_us_per_event"),
        f"{median('cpu_share'):.0%}",
        f"{median('kib_per_stream'):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _latencies(results: Sequence[Result], scenarios: Sequence[str]) -> str:
    names = ("first_event_p50", "first_event_p99", "first_word_p50", "first_word_p99", "under_way_p50", "under_way_p99")
    shown = [name.replace("_", " ") for name in names]
    rows = [f"| scenario | server | {' | '.join(shown)} |", "|---" * (len(names) + 2) + "|"]
    for scenario in scenarios:
        alone = _of(results, scenario, "provider")
        for target in TARGETS:
            mine = _of(results, scenario, target)
            if mine:
                cells = [_number(_medians(mine)(name)) for name in names]
                rows.append(f"| {scenario} | {target} | {' | '.join(cells)} |")
            if mine and target != "provider":
                added = [_added(mine, alone, name) for name in names]
                rows.append(f"| {scenario} | {target}, added | {' | '.join(added)} |")
    return "\n".join(rows)


def _of(results: Sequence[Result], scenario: str, target: str) -> list[Result]:
    return [one for one in results if one["scenario"] == scenario and one["target"] == target]


def _medians(results: Sequence[Result]) -> Callable[[str], float]:
    def median(name: str) -> float:
        values = [one[name] for one in results if one[name] is not None]
        return statistics.median(values) if values else float("nan")

    return median


def _pairs(mine: Sequence[Result], base: Sequence[Result], name: str) -> list[tuple[float, float]]:
    """Values of the same round."""
    of_round = {one["round"]: one[name] for one in base}
    pairs = [(one[name], of_round.get(one["round"])) for one in mine]
    return [(a, b) for a, b in pairs if a is not None and b]


def _ratio(mine: Sequence[Result], base: Sequence[Result], name: str) -> str:
    ratios = [a / b for a, b in _pairs(mine, base, name)]
    return f"{statistics.median(ratios):.2f} {_span(ratios, '.2f')}" if ratios else "–"


def _added(mine: Sequence[Result], base: Sequence[Result], name: str) -> str:
    differences = [a - b for a, b in _pairs(mine, base, name)]
    return f"+{statistics.median(differences):.2f}" if differences else "–"


def _span(values: Sequence[float], form: str = ".1f") -> str:
    return f"({min(values):{form}}–{max(values):{form}})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
