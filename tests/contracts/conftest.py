"""What the suites of the port Database share."""

import sys
from collections.abc import Iterator

import pytest
from tests.contracts.tally_service import BROKEN, FIRST, SECOND, write_package


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The service as it was, as it is, and with a migration that fails."""
    root = tmp_path_factory.mktemp("packages")
    sys.path.insert(0, str(root))
    yield {
        "older": write_package(root / "tally_older", FIRST),
        "newer": write_package(root / "tally_newer", FIRST, SECOND),
        "broken": write_package(root / "tally_broken", FIRST, BROKEN),
    }
    sys.path.remove(str(root))
