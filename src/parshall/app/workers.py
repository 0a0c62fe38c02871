"""`parshall up --workers N`: several processes that share one listening socket, one PostgreSQL and one Valkey."""

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from parshall.app.apart import ServiceName
from parshall.app.config import PREFIX, Settings
from parshall.app.local import prepare_home
from parshall.app.server import ANNOUNCEMENT, LISTEN_BACKLOG, bind, check_demo, url_of
from parshall.app.supervise import Child, parshall, supervise
from parshall.kernel.errors import StartupError
from parshall.kernel.metrics import FOLDER_VARIABLE

SPARE_SECONDS = 5.0
"""What a worker may take to end beyond its drain time."""


def run(settings: Settings, workers: int, *, demo: bool) -> int:
    """Serve until SIGINT or SIGTERM; the exit code. Raises StartupError where the settings do not let them share."""
    lacking = settings.lacking_to_share(ServiceName)
    if lacking:
        raise StartupError(
            f"--workers {workers} needs records and streams where every worker reaches them: set "
            f"{' and '.join(lacking)}, or leave --workers out."
        )
    check_demo(settings, demo=demo)
    with contextlib.closing(bind(settings.host, settings.port, option="PORT")) as bound:
        bound.listen(LISTEN_BACKLOG)
        with _metrics_folder(settings, bound) as folder:
            return asyncio.run(_supervise(settings, workers, bound, folder, demo=demo))


@contextlib.contextmanager
def _metrics_folder(settings: Settings, bound: socket.socket) -> Iterator[Path]:
    """An empty folder in which the workers count together: one a port, so that no deployment empties another's."""
    prepare_home(settings.home_dir)
    folder = settings.home_dir / f"metrics-{bound.getsockname()[1]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _supervise(settings: Settings, workers: int, bound: socket.socket, folder: Path, *, demo: bool) -> int:
    def told() -> None:
        print(f"{workers} workers serve {url_of(bound)}", flush=True)  # noqa: T201 - what the operator waits for

    children = [_worker(settings, number, bound, folder, demo=demo) for number in range(1, workers + 1)]
    # The first one alone: it brings the databases forward and makes the first users.
    stages = [children[:1], children[1:]]
    return await supervise(stages, stop_seconds=settings.drain_seconds + SPARE_SECONDS, on_ready=told)


def _worker(settings: Settings, number: int, bound: socket.socket, folder: Path, *, demo: bool) -> Child:
    descriptor = bound.fileno()
    arguments = ["up", "--host", settings.host, "--descriptor", str(descriptor)]
    return Child(
        name=f"worker {number}",
        command=parshall(*arguments, *(["--demo"] if demo and number == 1 else [])),
        ready=f"Parshall {ANNOUNCEMENT}",
        environment=_counting_together(settings) | {FOLDER_VARIABLE: str(folder)},
        descriptors=(descriptor,),
        on_end=partial(mark_process_dead, path=str(folder)),  # its gauges go, what it has counted stays
    )


def _counting_together(settings: Settings) -> dict[str, str]:
    """Have the workers count requests where their streams are, unless something else is set or its TLS needs files."""
    log = settings.stream_log_url
    if settings.limits_url is not None or log is None or "?" in log:
        return {}
    return {f"{PREFIX}LIMITS_URL": log}
