"""The manifests held against the program: what they name exists, and what they ask of a cluster fits together."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deployment import DEPLOY, USER, check_command, check_options, manifests, port_of_service, settings_of
from tests.serving import PATHS

from parshall import __version__
from parshall.app.apart import ServiceName
from parshall.app.compose import HEALTH_SECONDS_MAX
from parshall.app.scrape import PATH as METRICS_PATH
from parshall.app.server import FINISH_SECONDS_MAX
from parshall.kernel.requests import HEALTH_PATHS

Object = dict[str, Any]
BASE = list(manifests("base"))
EXAMPLE = list(manifests("overlays/example"))
SERVICES = tuple(service.value for service in ServiceName)
EVERY = pytest.mark.parametrize("name", SERVICES)
PART = {"app.kubernetes.io/part-of": "parshall"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def found(kind: str, name: str, among: list[Object] = BASE) -> Object:
    (one,) = [each for each in among if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return one


def pod(name: str) -> Object:
    spec: Object = found("Deployment", name)["spec"]["template"]["spec"]
    return spec


def container(name: str) -> Object:
    (one,) = pod(name)["containers"]
    return dict(one)


def containers(name: str) -> list[Object]:
    return [*pod(name).get("initContainers", ()), *pod(name)["containers"]]


def variables() -> dict[str, str]:
    return dict(found("ConfigMap", "settings")["data"])


@EVERY
def test_a_pod_is_held_to_the_strictest_pod_security_standard(name: str) -> None:
    security = pod(name)["securityContext"]
    assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == USER
    assert pod(name)["automountServiceAccountToken"] is False
    for each in containers(name):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"].keys() == {"cpu", "memory"} and "memory" in each["resources"]["limits"]
        assert any(mount["mountPath"] == "/var/lib/parshall" for mount in each["volumeMounts"])
    assert found("Namespace", "parshall", EXAMPLE)["metadata"]["labels"] == {
        "pod-security.kubernetes.io/enforce": "restricted"
    }


@EVERY
def test_no_variable_of_kubernetes_is_taken_for_an_option(name: str) -> None:
    """A Service PARSHALL-AUTH would set PARSHALL_AUTH_PORT=tcp://…, which is no port."""
    assert pod(name)["enableServiceLinks"] is False


@EVERY
def test_it_runs_a_service_on_its_port_behind_a_service_of_its_name(name: str) -> None:
    assert container(name)["args"] == ["serve", name]
    for each in containers(name):
        check_command(each["args"])
    assert container(name)["ports"] == [{"name": "http", "containerPort": port_of_service(name)}]
    service = found("Service", name)
    assert service["spec"]["ports"] == [{"name": "http", "port": port_of_service(name), "targetPort": "http"}]


@EVERY
def test_selectors_select_the_pods_of_one_service(name: str) -> None:
    labels = found("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    wanted = {"app.kubernetes.io/name": name} | PART
    assert labels == wanted
    assert found("Deployment", name)["spec"]["selector"]["matchLabels"] == wanted
    assert found("Service", name)["spec"]["selector"] == wanted
    assert found("PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"] == wanted
    for spread in pod(name)["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= wanted.items()
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway", "a cluster of one zone runs it too"


def test_the_settings_are_settings_and_tell_each_service_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = variables() | found("ConfigMap", "settings", EXAMPLE)["data"]
    check_options(given)
    secrets = given["PARSHALL_SECRETS_DIR"]
    settings = settings_of(given | {"PARSHALL_SECRETS_DIR": str(tmp_path)}, monkeypatch)
    for name in SERVICES:
        assert getattr(settings, f"{name}_url") == f"http://{name}:{port_of_service(name)}"
    assert settings.trusted_proxies and settings.issuer.startswith("https://")
    for name in SERVICES:
        for each in containers(name):
            assert each["envFrom"] == [{"configMapRef": {"name": "settings"}}]
            assert {"name": "secrets", "mountPath": secrets, "readOnly": True} in each["volumeMounts"]


@EVERY
def test_secrets_are_files_of_a_secret_of_the_services_name(name: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    assert volumes["secrets"]["secret"] == {"secretName": name, "defaultMode": 0o440}
    assert all(mount["name"] in volumes for each in containers(name) for mount in each["volumeMounts"])
    assert not any(each["kind"] == "Secret" for each in (*BASE, *EXAMPLE)), "none is committed"


def test_auth_registers_the_others_by_the_secrets_that_they_are_given() -> None:
    (services,) = [volume for volume in pod("auth")["volumes"] if volume["name"] == "services"]
    files = {
        source["secret"]["items"][0]["path"]: source["secret"]["name"] for source in services["projected"]["sources"]
    }
    assert files == {"accounting": "accounting", "chat": "chat"}
    for each in pod("auth")["initContainers"]:
        (mount,) = [mount for mount in each["volumeMounts"] if mount["name"] == "services"]
        name = each["name"].removeprefix("register-")
        assert each["args"][-1] == f"{mount['mountPath']}/{name}" and each["args"][2] == name


@EVERY
def test_probes_ask_what_is_there_and_only_readiness_depends_on_others(name: str) -> None:
    asked = {probe: container(name)[probe]["httpGet"] for probe in PROBES}
    assert {get["port"] for get in asked.values()} == {"http"}
    assert asked["readinessProbe"]["path"] == asked["startupProbe"]["path"] == HEALTH_PATHS[0]
    assert asked["livenessProbe"]["path"] == "/api/version", "a database that is away is no reason to kill streams"
    for probe in ("startupProbe", "readinessProbe"):
        assert container(name)[probe]["timeoutSeconds"] > HEALTH_SECONDS_MAX


@EVERY
def test_a_pod_is_killed_only_after_it_had_the_time_to_end(name: str) -> None:
    pause = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    ready = container(name)["readinessProbe"]
    assert pause >= ready["periodSeconds"] * ready["failureThreshold"], "nobody sends it anything new by then"
    needed = pause + float(variables()["PARSHALL_DRAIN_SECONDS"]) + FINISH_SECONDS_MAX
    assert pod(name)["terminationGracePeriodSeconds"] >= needed + 10


@EVERY
def test_a_node_may_be_emptied_while_the_service_goes_on(name: str) -> None:
    deployment = found("Deployment", name)["spec"]
    replicas = deployment.get("replicas") or found("HorizontalPodAutoscaler", name)["spec"]["minReplicas"]
    assert found("PodDisruptionBudget", name)["spec"]["maxUnavailable"] < replicas
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_chat_grows_by_its_open_streams_and_the_adapter_knows_them() -> None:
    scaler = found("HorizontalPodAutoscaler", "chat")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat"}
    assert "replicas" not in found("Deployment", "chat")["spec"], "each deployment would undo what was scaled"
    (metric,) = scaler["metrics"]
    rules = yaml.safe_load((DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    (rule,) = rules["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == rule["seriesQuery"].partition("{")[0]


def test_prometheus_scrapes_each_pod_with_the_token_that_is_an_option() -> None:
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "podmonitor.yaml").read_text(encoding="utf-8"))["spec"]
    assert monitor["selector"]["matchLabels"] == PART
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", METRICS_PATH)
    check_options({endpoint["authorization"]["credentials"]["key"].upper(): "x" * 16})


def test_who_talks_to_whom_is_what_is_needed_and_no_more() -> None:
    policies = [each for each in BASE if each["kind"] == "NetworkPolicy"]
    nothing = found("NetworkPolicy", "nothing-else")["spec"]
    assert nothing == {"podSelector": {"matchLabels": PART}, "policyTypes": ["Ingress", "Egress"]}
    callers = {
        name: {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
            for rule in found("NetworkPolicy", f"to-{name}")["spec"]["ingress"]
            for peer in rule["from"]
            if "podSelector" in peer
        }
        for name in SERVICES
    }
    assert callers == {"auth": {"accounting", "chat"}, "accounting": {"auth", "chat"}, "chat": {"auth"}}
    called = {
        (policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], peer_name, port["port"])
        for policy in policies
        for rule in policy["spec"].get("egress", ())
        for peer in rule.get("to", ())
        for peer_name in [peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")]
        for port in rule["ports"]
        if peer_name
    }
    assert called == {(caller, name, port_of_service(name)) for name, each in callers.items() for caller in each}


def test_the_ingress_goes_by_the_path_as_the_protocol_has_it() -> None:
    (rule,) = found("Ingress", "parshall", EXAMPLE)["spec"]["rules"]
    paths = {each["path"]: each["backend"]["service"]["name"] for each in rule["http"]["paths"]}
    wanted = {path: name for name, several in PATHS.items() for path in several}
    assert paths == {"/metrics": "nobody", "/": "chat"} | wanted
    assert all(each["pathType"] == "Prefix" for each in rule["http"]["paths"])
    assert "selector" not in found("Service", "nobody", EXAMPLE)["spec"]


def test_kustomize_puts_it_together_with_one_image_of_a_version() -> None:
    kubectl = shutil.which("kubectl") or shutil.which("kustomize")
    if kubectl is None:
        pytest.skip("neither kubectl nor kustomize is here")
    command = [kubectl, "kustomize"] if "kubectl" in kubectl else [kubectl, "build"]
    folder = DEPLOY / "kubernetes" / "overlays" / "example"
    ran = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    built = list(yaml.safe_load_all(ran.stdout))
    assert len(built) == len(BASE) + len(EXAMPLE) - 1, "the overlay's settings are those of the base"
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"} == {"parshall"}
    assert found("ConfigMap", "settings", built)["data"].items() >= variables().items() - {
        ("PARSHALL_ISSUER", "parshall")
    }
    images = {
        one["image"]
        for each in built
        if each["kind"] == "Deployment"
        for one in [
            *each["spec"]["template"]["spec"].get("initContainers", ()),
            *each["spec"]["template"]["spec"]["containers"],
        ]
    }
    (image,) = images
    assert image.rpartition(":")[2][0].isdigit()


def test_the_example_names_the_image_by_the_version_that_is_here() -> None:
    text = (DEPLOY / "kubernetes" / "overlays" / "example" / "kustomization.yaml").read_text(encoding="utf-8")
    (image,) = yaml.safe_load(text)["images"]
    assert image["newTag"] == __version__
    assert f"image: parshall:{__version__}" in (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
