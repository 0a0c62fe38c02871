"""`GET /metrics` as a scraper reads it: samples by name and labels, and their sums."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "a-token-for-scraping"
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Scraped:
    """One scrape."""

    samples: Mapping[tuple[str, Labels], float]
    names: frozenset[str]
    """Of every series that a query may name, those of metrics without a sample yet included."""

    def sum(self, name: str, **labels: str) -> float:
        """Of all series of that name which have these labels."""
        wanted = frozenset(labels.items())
        return sum(value for (each, has), value in self.samples.items() if each == name and wanted <= has)

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has."""
        return {dict(has)[label] for each, has in self.samples if each == name}


def scrape(*urls: str, token: str = TOKEN) -> Scraped:
    """The metrics of a server, of one service of it, or of several services together."""
    samples: dict[tuple[str, Labels], float] = defaultdict(float)
    names: frozenset[str] = frozenset()
    for url in urls:
        answer = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=30)
        assert answer.status_code == 200, answer.text
        each = read(answer.text)
        for key, value in each.samples.items():
            samples[key] += value
        names |= each.names
    return Scraped(samples=samples, names=names)


def read(text: str) -> Scraped:
    """An exposition in Prometheus' text format."""
    samples: dict[tuple[str, Labels], float] = {}
    names: set[str] = set()
    for family in text_string_to_metric_families(text):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is told twice"
            samples[key] = sample.value
    return Scraped(samples=samples, names=frozenset(names))
