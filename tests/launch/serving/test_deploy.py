"""Files of deployment: users, probes and ports; their flags and addresses are those of the server.

The files are read, not run: no test needs Docker, systemd or a cluster.
"""

import configparser
import pathlib
import re
import shlex

import yaml

from launch.serving.app import Application
from launch.serving.options import Options
from launch.serving.responses import PUBLIC

ROOT = pathlib.Path(__file__).parents[3]
FOLDER = ROOT / "launch" / "deploy"


def flags_of_serve():
    text = (ROOT / "launch" / "serve.py").read_text(encoding="utf-8")
    return set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', text))


def check_flags(words):
    """Checks that flags exist, and returns them by name."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    assert set(given) <= flags_of_serve()
    assert given["export"].startswith("/")
    return given


def check_probe(path):
    """Checks that an address of health exists, and needs no token."""
    assert path in PUBLIC
    assert path in {route.path for route in Application({}, Options()).asgi().routes}


def docker():
    """Returns the instructions of the Dockerfile as pairs of name and arguments."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile():
    found = docker()
    by_name = {name: rest for name, rest in found}
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "VOLUME", "STOPSIGNAL",
             "HEALTHCHECK", "ENTRYPOINT", "CMD"}  # fmt: skip
    assert {name for name, _ in found} <= known
    assert re.fullmatch(r"python:3\.1[123]-slim-\w+", by_name["FROM"])
    user = by_name["USER"]
    assert user.isdigit()
    assert int(user) > 0
    assert f"--uid {user}" in " ".join(rest for name, rest in found if name == "RUN")
    for name, rest in found:
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
    assert by_name["STOPSIGNAL"] == "SIGTERM"
    assert shlex.split(by_name["ENTRYPOINT"].strip("[]").replace(",", "")) == [
        "python", "-m", "launch.serve",
    ]  # fmt: skip
    given = check_flags(shlex.split(by_name["CMD"].strip("[]").replace(",", "")))
    assert given["port"] == by_name["EXPOSE"]
    assert given["host"] == "0.0.0.0"
    health = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", by_name["HEALTHCHECK"])
    assert health[1] == given["port"]
    check_probe(health[2])


def test_systemd_unit():
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(FOLDER / "attention-serve.service", encoding="utf-8")
    assert parser.sections() == ["Unit", "Service", "Install"]
    service = parser["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[1:3] == ["-m", "launch.serve"]
    assert words[0].startswith(service["WorkingDirectory"])
    given = check_flags(words[3:])
    assert "host" not in given, "it serves this machine only"
    assert service["DynamicUser"] == "yes"
    assert service["NoNewPrivileges"] == "yes"
    assert service["KillSignal"] == "SIGTERM"
    assert float(service["TimeoutStopSec"]) > Options().timeout_s
    # Wrong flags are not tried again.
    assert service["RestartPreventExitStatus"] == "2"


def test_kubernetes():
    text = (FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = check_flags(container["args"])
    (port,) = container["ports"]
    assert str(port["containerPort"]) == given["port"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe, path in (
        ("startupProbe", "/v2/health/live"),
        ("livenessProbe", "/v2/health/live"),
        ("readinessProbe", "/v2/health/ready"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        check_probe(path)
    user = dict(docker())["USER"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert str(pod["securityContext"]["runAsUser"]) == user
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["terminationGracePeriodSeconds"] > Options().timeout_s
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["env"][0]["name"] == "ATTENTION_TOKEN"
