"""Structured logs: JSON for machines, a readable form on a terminal; every line carries the ids that were bound."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, TextIO, cast

import msgspec
import structlog

from parshall.kernel import trace

_HIDDEN = ("password", "secret", "token", "authorization", "apikey", "cookie")
_NUMBERS_KEPT = (int, float, bool, type(None))


def configure(*, level: str, json: bool | None, service: str | None = None) -> None:
    """Set up logging for this process. `json=None` picks the readable form when standard error is a terminal.

    Every line names `service`, where one is served alone.
    """
    plain = sys.stderr.isatty() if json is None else not json
    render: Any = structlog.dev.ConsoleRenderer() if plain else structlog.processors.JSONRenderer(serializer=_json)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_secrets,
        *([] if service is None else [_naming(service)]),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _StandardError())),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def _json(entry: object, **_: object) -> str:
    """A line of the log; what JSON has no form for is told as Python would show it."""
    return msgspec.json.encode(entry, enc_hook=repr).decode()


class _StandardError:
    """Whatever standard error is when a line is written; loggers live longer than what it once was."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def hide_secrets(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the value of every member, at any depth, whose name speaks of a secret; token counts (numbers) stay."""
    for name, value in entry.items():
        entry[name] = _hidden(name, value)
    return entry


def _naming(service: str) -> Any:
    def name(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"service": str(service), **entry}

    return name


def _hidden(name: object, value: Any) -> Any:
    if not isinstance(value, _NUMBERS_KEPT) and _speaks_of_a_secret(str(name)):
        return "redacted"
    if isinstance(value, Mapping):
        return {inner: _hidden(inner, item) for inner, item in value.items()}
    if isinstance(value, list):
        return [_hidden("", item) for item in value]
    return value


@lru_cache(maxsize=1024)
def _speaks_of_a_secret(name: str) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return any(word in plain for word in _HIDDEN)


def log(area: str) -> Any:
    """A logger whose lines carry `area`."""
    return structlog.get_logger(area=area)


def bind(**ids: str) -> None:
    """Have every further line of this request carry these ids, and its span the stream's."""
    structlog.contextvars.bind_contextvars(**ids)
    if "stream" in ids:
        trace.of_stream(ids["stream"])
