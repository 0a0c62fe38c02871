"""How long the disk takes to flush, and the same disk as if it took longer: virtual ones answer before all is safe.

Then every `fdatasync` and `fsync` of this program, and of what it starts (PostgreSQL among them), sleeps first.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SOURCE = Path(__file__).with_name("slow_flush.c")
_NANOSECONDS = "FLUSH_NANOSECONDS"
_TRIES = 200


def slowed(milliseconds: float) -> None:
    """Run this program anew with flushes that take so much longer, and end with it; return in the one run so."""
    nanoseconds = str(round(milliseconds * 1e6))
    if os.environ.get(_NANOSECONDS) == nanoseconds:
        return
    if shutil.which("cc") is None:
        raise SystemExit("To slow the disk down takes a C compiler named cc; install one (Debian: apt install gcc).")
    with tempfile.TemporaryDirectory(prefix="parshall-bench-flush-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        library = f"{folder}/slow_flush.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": library, _NANOSECONDS: nanoseconds}
        raise SystemExit(subprocess.run(sys.orig_argv, env=environment, check=False).returncode)


def check_slowed(process: int) -> None:
    """See that a process is slowed if this one is: the linker only warns of a library that it cannot take."""
    library = os.environ.get("LD_PRELOAD", "")
    if _NANOSECONDS in os.environ and library not in Path(f"/proc/{process}/maps").read_text():
        raise SystemExit(f"Process {process} flushes as fast as ever: it could not load {library}.")


def flush_milliseconds() -> float:
    """How long a flush behind one page that was written takes, on the disk of temporary files: the median of many."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_TRIES):
            os.pwrite(file.fileno(), os.urandom(4096), 0)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[_TRIES // 2] * 1e3
