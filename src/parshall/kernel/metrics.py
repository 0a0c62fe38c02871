"""The metrics of this process, under the names that dashboards and alerts rely on, and the text that tells them.

Labels are drawn from closed sets: routes as templates, models of the catalogue, codes of ours. Nothing that a client
sends becomes one. Where several processes share a port, prometheus-client keeps the values of each in files of the
folder that FOLDER_VARIABLE names, and any of them tells the sums.
"""

import os
import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from parshall import __version__

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Named by prometheus-client, which reads it when it is imported."""
OTHER = "other"
"""The one label of everything that is not in a closed set."""
_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
_LOG = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

# A series more for each counter, which would say nothing that the start of the process does not.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
REGISTRY = CollectorRegistry()
"""What this process counts; the library's global one stays empty."""


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"parshall_{name}", meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str, summed: bool = False) -> Gauge:
    """Of several processes the sum, or the largest; of those that live."""
    return Gauge(
        f"parshall_{name}", meaning, labels, registry=REGISTRY, multiprocess_mode="livesum" if summed else "livemax"
    )


def _histogram(name: str, meaning: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(f"parshall_{name}", meaning, labels, registry=REGISTRY, buckets=buckets)


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────────

http_requests = _counter("http_requests", "Requests answered.", "service", "route", "method", "status")
http_request_seconds = _histogram(
    "http_request_seconds", "Seconds from a request to the status line of its answer.", "route", buckets=_QUICK
)
rate_limited = _counter("rate_limited", "Requests refused because their caller made too many within a minute.")
breaker_open = _gauge("breaker_open", "1 while another service is left alone because it does not answer.", "peer")

# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────

open_streams = _gauge("open_streams", "Streams that are produced now.", summed=True)
open_readers = _gauge("open_readers", "Responses that read a stream now.", summed=True)
streams_ended = _counter("streams_ended", "Streams whose end was kept.", "outcome")
stream_seconds = _histogram("stream_seconds", "Seconds from a stream's record to its end.", buckets=_SLOW)
first_token_seconds = _histogram(
    "first_token_seconds", "Seconds from a stream's record to its first token in the log.", "model", buckets=_SLOW
)
tokens = _counter("tokens", "Tokens of ended streams, as charged.", "model", "direction")
log_append_seconds = _histogram("log_append_seconds", "Seconds until events are kept in the stream log.", buckets=_LOG)
provider_errors = _counter("provider_errors", "Failures of model providers, repeated ones too.", "provider", "kind")
stream_id_refusals = _counter("stream_id_refusals", "Refused streaming session ids.", "reason")
settlements_pending = _gauge("settlements_pending", "Ended streams that accounting has not settled yet.")
settlement_pending_oldest_seconds = _gauge(
    "settlement_pending_oldest_seconds", "Age of the oldest of them in seconds, 0 where there is none."
)
sweep_lag_seconds = _gauge("sweep_lag_seconds", "Seconds since the sweeper last finished a pass.")

# ── Credits ─────────────────────────────────────────────────────────────────────────────────────────────────────────

credits_reserved = _counter("credits_reserved", "Credits reserved for streams.")
credits_settled = _counter("credits_settled", "Credits charged for streams, of what was reserved.")
credits_returned = _counter("credits_returned", "Credits given back when streams were settled.")
credits_voided = _counter("credits_voided", "Credits given back by reservations that were voided or expired.")
ledger_invariant_broken = _gauge("ledger_invariant_broken", "1 while balances do not add up (M1), 0 while they do.")

_gauge("build_info", "1, with what runs.", "version", "python").labels(__version__, platform.python_version()).set(1)
if FOLDER_VARIABLE not in os.environ:
    ProcessCollector(registry=REGISTRY)
    PlatformCollector(registry=REGISTRY)


def exposition(accept: str) -> tuple[bytes, str]:
    """Every metric as a scraper with this Accept header takes it, and the content type."""
    encode, content_type = choose_encoder(accept)
    return encode(_together() if FOLDER_VARIABLE in os.environ else REGISTRY), content_type


def _together() -> CollectorRegistry:
    """The metrics of all processes that write to the folder."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's
    return registry
