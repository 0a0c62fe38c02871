"""`parshall up --workers N`: several processes that share one listening socket, one PostgreSQL and one Valkey."""

import asyncio
import contextlib
import socket

from parshall.app.config import PREFIX, Settings
from parshall.app.server import ANNOUNCEMENT, LISTEN_BACKLOG, bind, check_demo, url_of
from parshall.app.supervise import Child, parshall, supervise
from parshall.kernel.errors import StartupError

SPARE_SECONDS = 5.0
"""What a worker may take to end beyond its drain time."""


def run(settings: Settings, workers: int, *, demo: bool) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. Raises StartupError where the settings do not let them share."""
    lacking = settings.lacking_to_share()
    if lacking:
        raise StartupError(
            f"--workers {workers} needs records and streams where every worker reaches them: set "
            f"{' and '.join(lacking)}, or leave --workers out."
        )
    check_demo(settings, demo=demo)
    with contextlib.closing(bind(settings.host, settings.port)) as bound:
        bound.listen(LISTEN_BACKLOG)
        return asyncio.run(_supervise(settings, workers, bound, demo=demo))


async def _supervise(settings: Settings, workers: int, bound: socket.socket, *, demo: bool) -> int:
    def told() -> None:
        print(f"{workers} workers serve {url_of(bound)}", flush=True)  # noqa: T201 - what the operator waits for

    children = [_worker(settings, number, bound, demo=demo) for number in range(1, workers + 1)]
    # The first one alone: it brings the databases forward and makes the first users.
    stages = [children[:1], children[1:]]
    return await supervise(stages, stop_seconds=settings.drain_seconds + SPARE_SECONDS, on_ready=told)


def _worker(settings: Settings, number: int, bound: socket.socket, *, demo: bool) -> Child:
    descriptor = bound.fileno()
    arguments = ["up", "--host", settings.host, "--descriptor", str(descriptor)]
    return Child(
        name=f"worker {number}",
        command=parshall(*arguments, *(["--demo"] if demo and number == 1 else [])),
        ready=ANNOUNCEMENT,
        environment=_counting_together(settings),
        descriptors=(descriptor,),
    )


def _counting_together(settings: Settings) -> dict[str, str]:
    """Have the workers count requests where their streams are, unless something else is set or its TLS needs files."""
    log = settings.stream_log_url
    if settings.limits_url is not None or log is None or "?" in log:
        return {}
    return {f"{PREFIX}LIMITS_URL": log}
