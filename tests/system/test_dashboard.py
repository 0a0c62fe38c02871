"""The dashboard and the alerts that are delivered: they ask for what there is, and are raised when they should be."""

import json
import re
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.clients.programs import had
from tests.scraping import TOKEN, Scraped, scrape
from tests.serving import serving, upstream

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "parshall.json").read_text(encoding="utf-8"))
ALERTS: list[dict[str, Any]] = yaml.safe_load((RULES / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
PAGE = (ROOT / "docs" / "OBSERVABILITY.md").read_text(encoding="utf-8")
QUOTED = re.compile(r'"[^"]*"')
NAME = re.compile(r"\b[a-z]+(?:_[a-z0-9]+)+\b")
FUNCTIONS = {"histogram_quantile"}
OF_PROMETHEUS = {"up", "job", "instance", "le"}
COLUMNS = 24


@pytest.fixture(scope="module")
def promtool() -> str:
    """Sought when it is needed, for it may have to be installed first."""
    found = had(("promtool",), ("prometheus",))
    if found is None:
        warnings.warn("promtool is not there and could not be installed: alerts are NOT tried", stacklevel=1)
        pytest.skip("promtool is not there: alerts are NOT tried")
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """What a server tells after a stream."""
    settings = {"EMBEDDED_MODEL": "off", "OPENAI_MODELS": "fake", "METRICS_TOKEN": TOKEN}
    with upstream() as url, serving(tmp_path_factory.mktemp("home"), OPENAI_BASE_URL=url, **settings) as server:
        alice = server.customer("alice")
        alice.ask(alice.session(), "fake-n5")
        yield scrape(server.url)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """What the dashboard and the alerts ask, with the variables of Grafana filled in."""
    asked = {
        f"{panel['id']} {panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }
    filled = {name: text.replace("$__rate_interval", "5m").replace("$instance", ".*") for name, text in asked.items()}
    return filled | {alert["alert"]: alert["expr"] for alert in ALERTS}


def test_every_expression_asks_for_metrics_and_labels_that_a_server_tells(scraped: Scraped) -> None:
    labels = {label for _, has in scraped.samples for label, _ in has} | OF_PROMETHEUS | {"provider", "kind", "peer"}
    assert len(expressions()) > 30
    for name, expression in expressions().items():
        plain = QUOTED.sub('""', expression)
        metrics = set(NAME.findall(plain)) - FUNCTIONS
        assert metrics - scraped.names == set(), name
        assert metrics or "up{" in plain, name
        grouped = re.findall(r"\bby \(([^)]*)\)", plain)
        matched = re.findall(r"([a-z_]+)(?:=~|!~|!=|=)\"", plain)
        assert {label.strip() for group in grouped for label in group.split(",")} | set(matched) <= labels, name


def test_every_metric_of_ours_is_shown_or_watched(scraped: Scraped) -> None:
    asked = " ".join(expressions().values())
    ours = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in scraped.names if name.startswith("parshall_")}
    assert {name for name in ours if name not in asked} == set()


def test_the_dashboard_can_be_imported() -> None:
    """The parts that Grafana needs: a title, one source of data to choose, panels that do not overlap."""
    assert DASHBOARD["title"] and DASHBOARD["uid"] == "parshall" and DASHBOARD["schemaVersion"] >= 36
    assert {each["name"]: each["type"] for each in DASHBOARD["templating"]["list"]} == {
        "datasource": "datasource",
        "instance": "query",
    }
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= COLUMNS and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"], panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]


def test_every_alert_says_what_is_wrong_and_where_it_is_said_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert [alert["alert"] for alert in ALERTS] == headings
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["runbook"] == f"docs/OBSERVABILITY.md#{alert['alert'].lower()}"


@pytest.mark.timeout(660)  # it may have to be installed
def test_alerts_are_raised_when_they_should_be_and_every_expression_is_one(tmp_path: Path, promtool: str) -> None:
    asked = {"groups": [{"name": "asked", "rules": []}]}
    for number, expression in enumerate(expressions().values()):
        asked["groups"][0]["rules"].append({"record": f"asked:{number}", "expr": expression})  # type: ignore[attr-defined]
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    for arguments in (
        ("check", "rules", str(tmp_path / "asked.yaml")),
        ("check", "rules", "alerts.yaml"),
        ("check", "config", "--syntax-only", "prometheus.yaml"),
        ("test", "rules", "alerts_test.yaml"),
    ):
        ran = subprocess.run([promtool, *arguments], cwd=RULES, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    tried = (RULES / "alerts_test.yaml").read_text(encoding="utf-8")
    assert [alert["alert"] for alert in ALERTS if f'alertname="{alert["alert"]}"' not in tried] == []
