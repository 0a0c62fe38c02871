"""Users and sessions as 0.1.0 kept them: run with the code of that release, it makes auth-0.1.0.sql and .json.

The first is auth's database, the second what clients of that release held: passwords, tokens and secrets, good for
nothing but these tests. Both are committed: a released version writes nothing new.
"""

# Made with `git archive b42e43d | tar -x -C OLD` and `PYTHONPATH=OLD/src python …/write_auth_0_1_0.py FOLDER`.

import asyncio
import json
import sqlite3
import sys
import tempfile
from pathlib import Path

from parshall.auth.passwords import PasswordHasher
from parshall.auth.service import Auth
from parshall.kernel.clock import SECOND
from parshall.kernel.sqlite import SqliteDatabase
from parshall.kernel.tokens import Role

AT = 1_800_000_000 * SECOND
ISSUER = "http://127.0.0.1:8000"
HERE = "192.0.2.1"


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "auth.db"
        database = SqliteDatabase(path, package="parshall.auth")
        hasher = PasswordHasher(passes=1, memory_kib=8, lanes=1)
        auth = Auth(database, issuer=ISSUER, clock=lambda: AT, hasher=hasher)
        await auth.start()
        await auth.ensure_admin("tiny")
        ann = await auth.create_user("ann", "Ann@example.org", "correct horse", Role.SUPERVISOR)
        used = await auth.login("ann", "correct horse", HERE)
        open_session = await auth.refresh(used.refresh_token)
        said = {
            "at": AT,
            "issuer": ISSUER,
            "ann": ann.id,
            "password": "correct horse",
            "access_token": open_session.access_token,
            "refresh_token": open_session.refresh_token,
            "used_refresh_token": used.refresh_token,
            "service_secret": await auth.add_service("chat"),
        }
        await auth.close()
        kept = sqlite3.connect(path)
        (folder / "auth-0.1.0.sql").write_text("\n".join(kept.iterdump()) + "\n")
        kept.close()
        (folder / "auth-0.1.0.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
