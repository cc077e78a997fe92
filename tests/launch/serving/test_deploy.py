"""Files of deployment: users, probes and ports; their flags and addresses are those of the server.

No test needs Docker, systemd or a cluster: the instructions of the Dockerfile and the command of
the unit are run on this machine.
"""

import configparser
import json
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml

from launch.serving.app import Application
from launch.serving.options import Options
from launch.serving.responses import PUBLIC
from tests.launch.serving.containers import Image, can_run, instructions
from tests.launch.serving.processes import Process

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
    return instructions(FOLDER / "Dockerfile")


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


def unit():
    """Returns the sections of the unit."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(FOLDER / "attention-serve.service", encoding="utf-8")
    return parser


def test_systemd_unit():
    assert unit().sections() == ["Unit", "Service", "Install"]
    service = unit()["Service"]
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


def test_dockerfile_follows_the_rules_of_hadolint():
    found = docker()
    names = [name for name, _ in found]
    for once in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):  # DL4003, DL4004, DL3012, DL3057
        assert names.count(once) == 1, once
    for name in ("ADD", "MAINTAINER"):  # DL3020, DL4000
        assert name not in names
    by_name = dict(found)
    image, _, tag = by_name["FROM"].partition(":")
    assert re.fullmatch(r"\d+\.\d+-slim-[a-z]+", tag), (image, "DL3006, DL3007: a pinned tag")
    assert by_name["USER"] not in ("0", "root"), "DL3002"
    assert 0 < int(by_name["EXPOSE"]) < 65536, "DL3011"
    for name in ("CMD", "ENTRYPOINT"):
        assert isinstance(json.loads(by_name[name]), list), "DL3025: the form of JSON"
    folder = False
    for number, (name, rest) in enumerate(found):
        if name == "WORKDIR":
            folder = True
            assert rest.startswith("/"), "DL3000"
        if name == "COPY":
            assert folder or rest.split()[-1].startswith("/"), "DL3045"
        if name != "RUN":
            continue
        assert names[number - 1] != "RUN", "DL3059: one layer for consecutive commands"
        assert not re.search(r"\b(sudo|cd|ssh|vim|shutdown|service|ps|free|top|kill)\s", rest)
        assert "|" not in rest.replace("||", ""), "DL4006: a pipe needs pipefail"
        assert "pip install" not in rest or "--no-cache-dir" in rest, "DL3042"
        assert "pip install" not in rest or "-c constraints.txt" in rest, "DL3013: pinned versions"
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest, "DL3015"
            assert " -y" in rest, "DL3014"
            assert "rm -rf /var/lib/apt/lists/*" in rest, "DL3009"
            assert re.search(r"install .*\w=\S+", rest), "DL3008: pinned versions"
        assert "apt-get upgrade" not in rest


def test_all_that_is_copied_is_in_the_context():
    lines = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {one for name, rest in docker() if name == "COPY" for one in rest.split()[:-1]}
    assert lines[1] == "*"
    assert kept == copied


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def started(words, **options):
    """Runs the words of a server; returns the process once it is ready."""
    start = time.monotonic()
    popen = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    first = popen.stdout.readline()
    assert first.startswith("serving "), popen.communicate(timeout=60)
    second = popen.stdout.readline()
    assert second.startswith("ready after "), popen.communicate(timeout=60)
    return Process(popen, int(first.rpartition(":")[2]), time.monotonic() - start)


def probe(container, kind, port):
    """Returns the status of a probe of the Kubernetes deployment."""
    path = container[kind]["httpGet"]["path"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.skipif(not can_run(), reason="mounts need root")
def test_the_dockerfile_is_built_and_run(exported, tmp_path, monkeypatch):
    """The container has the limits of the Kubernetes deployment: its user, a read-only root."""
    root, port = tmp_path / "root", free_port()
    root.mkdir()
    for folder in (*tmp_path.parents[:2], tmp_path, root, exported.parent, exported):
        folder.chmod(0o755)
    image = Image(root, exported, port)
    image.build(FOLDER / "Dockerfile", ["__pycache__"])
    assert image.user == "10001"
    assert (root / "cache").stat().st_uid == 10001
    assert (root / "app" / "launch").stat().st_uid == 0
    deployment, _ = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == json.loads(dict(docker())["CMD"])
    assert image.health() != 0, "nothing listens yet"
    before, compiled = image.files(), None
    for start in ("cold", "warm"):
        server = started(image.command())
        try:
            assert server.port == port
            status = pathlib.Path(f"/proc/{server.popen.pid}/status").read_text()
            assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)
            assert image.health() == 0
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert probe(container, kind, port) == 200
            answer = server.post("/models/exported", {"inputs": "fine lovely film"})
            assert answer[0] == 200, answer
            print(f"{start}: {server.ready_s:.1f} s, {server.cpu_s:.1f} s of CPU, "
                  f"{server.memory():.0f} MB")  # fmt: skip
            assert server.memory("VmHWM") < 1024, "of the request of the deployment"
            server.popen.send_signal(getattr(signal, image.last["STOPSIGNAL"]))
            out, log = server.popen.communicate(timeout=60)
            assert (out, log, server.popen.returncode) == ("stopped\n", "", 0)
        finally:
            server.popen.kill()
            server.popen.communicate()
        new = {path for path, at in image.files().items() if before.get(path) != at}
        assert {path.split("/")[0] for path in new} == {"cache"}, new
        programs = {path for path in new if path.endswith("-cache")}
        assert programs, "compiled programs are kept"
        assert compiled in (None, programs), "a restarted server compiles nothing"
        compiled = programs


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd on this machine")
def test_systemd_accepts_the_unit(tmp_path):
    text = (FOLDER / "attention-serve.service").read_text(encoding="utf-8")
    text = text.replace("/opt/attention/.venv/bin/python", "/usr/bin/env")
    path = tmp_path / "attention-serve.service"
    path.write_text(text.replace("/opt/attention", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    path.write_text(path.read_text().replace("[Service]", "[Service]\nUnknownKey=1"))
    words = ["systemd-analyze", "verify", "--man=no", str(path)]
    assert "UnknownKey" in subprocess.run(words, capture_output=True, text=True).stderr


@pytest.mark.slow
def test_the_command_of_the_unit_runs_with_its_environment(exported, tmp_path):
    service, port = unit()["Service"], free_port()
    assert service["CacheDirectory"] == "attention-serve"
    for folder in (tmp_path, *tmp_path.parents[:2], exported.parent, exported):
        folder.chmod(0o755)
    places = {"/opt/attention/.venv/bin/python": sys.executable, "/opt/attention": str(ROOT),
              "/srv/exports/exported": str(exported), "/var/cache/attention-serve": str(tmp_path),
              "--port=8000": f"--port={port}"}  # fmt: skip

    def here(text):
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    # A unit has these variables and no others of the user.
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    environment |= dict(one.split("=", 1) for one in shlex.split(here(service["Environment"])))
    words = shlex.split(here(service["ExecStart"]))
    folder = here(service["WorkingDirectory"])
    server = started(words, cwd=folder, env=environment)
    try:
        assert server.port == port
        assert server.post(f"/models/{exported.name}", {"inputs": "a film"})[0] == 200
        server.popen.send_signal(getattr(signal, service["KillSignal"]))
        out, log = server.popen.communicate(timeout=float(service["TimeoutStopSec"]))
        assert (out, log, server.popen.returncode) == ("stopped\n", "", 0)
    finally:
        server.popen.kill()
        server.popen.communicate()
    assert list((tmp_path / "jax").glob("*-cache"))
    wrong = [*words, "--max_batch=3"]
    done = subprocess.run(wrong, cwd=folder, env=environment, capture_output=True, timeout=240)
    assert done.returncode == int(service["RestartPreventExitStatus"])
