"""What the OpenAPI document promises: data that fits it and data that does not, and answers as documented."""

import warnings
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from tests.hostile import Deployment, deployed
from tests.serving import Server

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 2
EXAMPLES_SOAK = 200
LEFT_OUT = ("/api/auth/logout-all", "/api/profile", "/api/change-password", "/api/chat/streams/silence")
"""Would end the session, or the user, that the others are asked with; or last for a minute and a half."""


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Deployment]]:
    with deployed(tmp_path_factory.mktemp("home")) as made:
        yield made


def check_all(server: Server, at: Deployment, examples: int, *, derandomize: bool) -> list[str]:
    """The operations that answer otherwise than documented, to good data and to bad."""
    token, wrong = server.user().token, []
    how = settings(
        max_examples=examples,
        derandomize=derandomize,
        database=None,
        phases=[Phase.generate] if derandomize else [Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for url in at.urls:
        for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
            for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                operation = found.ok()
                if operation.path not in LEFT_OUT and (what := fault(operation, mode, how, url, token)):
                    wrong.append(f"{operation.method.upper()} {operation.path}, {mode.value} data: {what}")
    return wrong


def fault(operation: schemathesis.APIOperation, mode: GenerationMode, how: settings, url: str, token: str) -> str:
    """What is wrong with an operation; empty where nothing is."""

    @how
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers_as_documented(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, headers={"Authorization": f"Bearer {token}"}, checks=CHECKS)

    try:
        answers_as_documented()
    except Unsatisfiable:  # nothing is taken, so nothing can be wrong
        return ""
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return ""


def test_every_operation_answers_as_documented(site: tuple[Server, Deployment]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_all(*site, EXAMPLES, derandomize=True) == []
    assert [line for line in site[0].output if "request_failed" in line] == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_operation_answers_as_documented_for_long(site: tuple[Server, Deployment]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_all(*site, EXAMPLES_SOAK, derandomize=False) == []
