"""The files in ``deploy/``, the Dockerfile and compose.yaml: parsed strictly, and compared with what they talk about.

Their commands are parsed by the command line itself, their variables are settings with values that a node accepts, and
their ports and paths agree with each other. A flag, a setting or an exit code that is renamed breaks a test here.
"""

from __future__ import annotations

import asyncio
import configparser
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest

from dledger.cli.exit_codes import ExitCode
from dledger.cli.root import cli
from dledger.config import SETTINGS, DLedgerConfig
from dledger.config.setting import environment_name
from dledger.local_group import LocalGroup, free_ports
from tests.shipping.wheel import REPOSITORY, Environment, clean_environment, project

DOCKERFILE = REPOSITORY / "Dockerfile"
COMPOSE = REPOSITORY / "compose.yaml"
UNIT = REPOSITORY / "deploy" / "systemd" / "dledger@.service"
MANIFESTS = REPOSITORY / "deploy" / "kubernetes" / "dledger.yaml"

VARIABLES = {environment_name(name) for setting in SETTINGS for name in setting.names}

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install -e '.[test]'")


class StrictLoader(yaml.SafeLoader):
    """As PyYAML reads, but a key that stands twice is an error instead of the last one winning."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        assert len(keys) == len(set(map(str, keys))), f"a key twice at line {node.start_mark.line + 1}: {keys}"
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> list[Any]:
    return [part for part in yaml.load_all(path.read_text(encoding="utf-8"), StrictLoader) if part is not None]


def parse_command(words: list[str]) -> click.Context:
    """Parse a ``dledger`` command line with the real parser, without running it."""
    assert words[0].rpartition("/")[2] == "dledger", words
    with cli.make_context("dledger", words[1:]) as top:
        name, command, rest = cli.resolve_command(top, [*top._protected_args, *top.args])
        assert command is not None
        while isinstance(command, click.Group):
            inner = command.make_context(name, list(rest), parent=top)
            name, command, rest = command.resolve_command(inner, [*inner._protected_args, *inner.args])
            assert command is not None
        return command.make_context(name, list(rest), parent=top)


def accepted(environment: dict[str, str], *overrides: str) -> DLedgerConfig:
    """What a node makes of these variables: every one is a setting's, and together they are a valid configuration."""
    assert set(environment) <= VARIABLES, set(environment) - VARIABLES
    return DLedgerConfig.from_file(None, dict(item.split("=", 1) for item in overrides), environment)


# ---------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments); continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def last(wanted: str) -> str:
    return [arguments for name, arguments in instructions() if name == wanted][-1]


def image_environment() -> dict[str, str]:
    return dict(item.split("=", 1) for item in shlex.split(last("ENV")))


def test_the_image_runs_the_command_and_not_as_root() -> None:
    known = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {name for name, _ in instructions()} <= known | {"ENTRYPOINT", "CMD"}
    for name, arguments in instructions():
        if name == "FROM":
            assert re.match(r"python:3\.\d+-slim( AS \w+)?$", arguments), "a base image with a version"
            assert tuple(map(int, arguments[7:].split("-")[0].split("."))) >= (3, 11)
    assert last("USER") not in {"root", "0"}
    assert parse_command([*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]).command.name == "start"
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_image_is_made_of_what_is_there() -> None:
    """What is copied exists and is let in by .dockerignore, and it is all that the wheel is built from."""
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for word in arguments.split()[:-1]
    }
    assert copied == let_in
    for name in copied:
        assert (REPOSITORY / name).exists()
    packages = project()["scripts"]
    assert {target.split(".")[0] for target in packages.values()} <= copied
    assert {project()["readme"], *project()["license-files"], "pyproject.toml"} <= copied
    for extra in re.findall(r"\[([\w,]+)\]", last("RUN")):
        assert set(extra.split(",")) <= set(project()["optional-dependencies"])


def test_the_image_s_settings_are_settings() -> None:
    environment = image_environment()
    config = accepted(environment | {"DLEDGER_SELF_ID": "n0", "DLEDGER_PEERS": "n0-n0:40911", "DLEDGER_GROUP": "g"})
    assert config.store_path_root_dir == last("VOLUME")
    assert config.bind_host == "0.0.0.0"
    assert last("EXPOSE").split() == ["40911", str(config.metrics_port)]
    assert f"127.0.0.1:{config.metrics_port}/livez" in last("HEALTHCHECK")


# ---------------------------------------------------------------- compose


def test_compose_makes_one_group_of_three() -> None:
    (compose,) = load_yaml(COMPOSE)
    configs = {}
    published = set()
    for name, service in compose["services"].items():
        config = accepted(image_environment() | service["environment"])
        configs[name] = config
        # A peer's host is the service's name, which is what the network knows it by.
        assert config.self_id == config.peer.host == name
        ports = [port.rsplit(":", 1) for port in service["ports"]]
        assert [int(inside) for _, inside in ports] == [config.peer.port, config.metrics_port]
        assert all(outside.startswith("127.0.0.1:") for outside, _ in ports), "published to this machine only"
        published |= {outside for outside, _ in ports}
        assert service["volumes"] == [f"{name}:{config.store_path_root_dir}"]
        assert name in compose["volumes"]
        test = service["healthcheck"]["test"]
        assert test[0] == "CMD"
        assert f"127.0.0.1:{config.metrics_port}/readyz" in test[-1]
        assert compose["networks"].keys() >= set(service["networks"])
    assert len(published) == 6
    assert {tuple(config.peers) for config in configs.values()} == {configs["n0"].peers}
    assert {peer.node_id for peer in configs["n0"].peers} == set(compose["services"])


def test_the_commands_in_compose_s_comments_work() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    (compose,) = load_yaml(COMPOSE)
    inside, outside = (parse_command(shlex.split(line)) for line in re.findall(r"^#.* (dledger status.*)$", text, re.M))
    assert inside.command.name == outside.command.name == "status"
    peers = [f"{name}-{service['ports'][0].rpartition(':')[0]}" for name, service in compose["services"].items()]
    assert outside.params["peers"].split(";") == peers
    assert outside.params["group"] == compose["x-environment"]["DLEDGER_GROUP"]


def test_the_pods_may_give_their_leader_away_with_tls() -> None:
    """The variables that the manifest's comment names are those of the command."""
    named = set(re.findall(r"DLEDGER_[A-Z_]+", MANIFESTS.read_text(encoding="utf-8"))) - VARIABLES
    transfer = cli.get_command(click.Context(cli), "transfer")
    assert transfer is not None
    documented = " ".join(parameter.help or "" for parameter in transfer.params if isinstance(parameter, click.Option))
    assert named == {name for name in named if name in documented}


def test_the_containers_processes_are_a_group(tmp_path: Path) -> None:
    """The image's and compose's commands and variables, run here: three processes, no file, and their own health checks.

    Only what a network of their own would change is changed: host names, ports, the folder.
    """
    (compose,) = load_yaml(COMPOSE)
    words = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    services = compose["services"]
    chosen = free_ports(2 * len(services))
    ports, metrics = (dict(zip(services, chosen[start::2], strict=True)) for start in (0, 1))
    running: list[subprocess.Popen[bytes]] = []
    try:
        for name, service in services.items():
            environment = image_environment() | service["environment"]
            for other, port in ports.items():
                wanted = environment["DLEDGER_PEERS"].replace(f"{other}-{other}:40911", f"{other}-127.0.0.1:{port}")
                environment["DLEDGER_PEERS"] = wanted
            environment |= {
                "DLEDGER_METRICS_PORT": str(metrics[name]),
                "DLEDGER_STORE_PATH_ROOT_DIR": str(tmp_path / name),
            }
            with open(tmp_path / f"{name}.log", "wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *words], env=clean_environment() | environment | {"PYTHONPATH": str(REPOSITORY)},
                        stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=tmp_path,
                    )
                )  # fmt: skip
        peers = environment["DLEDGER_PEERS"]
        status = run_dledger(
            ["status", "--group", environment["DLEDGER_GROUP"], "--peers", peers, "--wait", "30s", "--up", "3"]
        )
        assert "3 of 3 up" in status
        image_check = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
        for name, service in services.items():
            for check in (image_check, service["healthcheck"]["test"][1:]):
                assert check[:2] == ["python", "-c"]
                here = check[2].replace(":5557/", f":{metrics[name]}/")
                subprocess.run([sys.executable, "-c", here], check=True, timeout=30)
    finally:
        for process in running:
            process.terminate()
        codes = [process.wait(30) for process in running]
    assert codes == [0, 0, 0]


# ---------------------------------------------------------------- systemd


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def test_the_unit_starts_a_node() -> None:
    service = unit()["Service"]
    start = parse_command(shlex.split(service["ExecStart"].replace("%i", "n0")))
    assert (start.command.name, start.params["file"]) == ("start", "/etc/dledger/n0.conf")
    check = parse_command(shlex.split(service["ExecStartPre"].replace("%i", "n0")))
    assert (check.command.name, check.params["files"]) == ("check", ("/etc/dledger/n0.conf",))
    assert service["KillSignal"] == "SIGTERM", "hands leadership over"
    stay_down = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert stay_down == {ExitCode.USAGE, ExitCode.CONFIGURATION}
    assert service["User"] != "root"


def test_the_unit_s_comments_are_commands() -> None:
    commands = re.findall(r"^#   \S*?bin/(dledger .*)$", UNIT.read_text(encoding="utf-8"), re.M)
    assert commands
    for command in commands:
        parse_command(shlex.split(command))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "dledger"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/dledger/bin/dledger", str(program)))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in (found.stdout + found.stderr).splitlines() if "dledger" in line]
    assert (found.returncode, ours) == (0, [])


# ---------------------------------------------------------------- Kubernetes


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [part for part in load_yaml(MANIFESTS) if part["kind"] == kind]
    return found


def container() -> dict[str, Any]:
    (found,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    return found


def shell_words(command: list[str], hostname: str) -> list[str]:
    """The words of the ``dledger`` command in ``sh -c COMMAND``, expanded by a real shell as in the pod ``hostname``."""
    assert command[:2] == ["sh", "-c"]
    script = f'dledger() {{ printf "%s\\n" dledger "$@"; exit; }}\n{command[2].replace("exec ", "")}'
    done = subprocess.run(["sh", "-c", script], env={"HOSTNAME": hostname}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_pods_are_one_group() -> None:
    stateful, service = manifest("StatefulSet"), manifest("Service")
    environment = {item["name"]: item["value"] for item in container()["env"]}
    assert stateful["spec"]["template"]["spec"]["enableServiceLinks"] is False, "DLEDGER_PORT=tcp://… is no setting"
    names = [f"{stateful['metadata']['name']}-{number}" for number in range(stateful["spec"]["replicas"])]
    ids = []
    for name in names:
        start = parse_command(shell_words(container()["command"], name))
        assert start.command.name == "start"
        config = accepted(environment, *start.params["overrides"])
        assert config.peer.host == f"{name}.{service['metadata']['name']}"
        ids.append(config.self_id)
        stop = parse_command(shell_words(container()["lifecycle"]["preStop"]["exec"]["command"], name))
        assert (stop.command.name, stop.params["giver"], stop.params["node"]) == ("transfer", config.self_id, None)
        assert stop.params["timeout"] < stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert sorted(ids) == sorted(peer.node_id for peer in config.peers)
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": config.peer.port, "peers": config.peer_port, "metrics": config.metrics_port}
    del ports["peers"]  # for nothing but the pods themselves
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == ports
    (mount,) = container()["volumeMounts"]
    (claim,) = stateful["spec"]["volumeClaimTemplates"]
    assert (mount["name"], mount["mountPath"]) == (claim["metadata"]["name"], config.store_path_root_dir)
    assert config.metrics_host == config.bind_host == "0.0.0.0"


def test_every_selector_selects_the_pods() -> None:
    stateful, labels = manifest("StatefulSet"), manifest("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["serviceName"] == manifest("Service")["metadata"]["name"]
    assert manifest("Service")["spec"]["selector"] == labels
    for selector in (
        stateful["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"],
        manifest("NetworkPolicy")["spec"]["podSelector"],
    ):
        assert selector["matchLabels"] == labels
    # Ready takes a leader, so the pods cannot wait for each other at first; their names must resolve before that, too.
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"
    assert manifest("Service")["spec"]["publishNotReadyAddresses"] is True
    assert manifest("PodDisruptionBudget")["spec"]["maxUnavailable"] == (stateful["spec"]["replicas"] - 1) // 2


def probe_paths() -> set[str]:
    paths = {container()[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    found = re.findall(r"5557(/\w+)'", DOCKERFILE.read_text() + COMPOSE.read_text())
    assert found, "the health checks ask something"
    return paths | set(found)


@pytest.mark.asyncio
async def test_the_probes_and_the_hand_over_work(tmp_path: Path) -> None:
    """On real nodes: every probed path answers, ready needs a quorum and alive does not, preStop moves the leader."""
    ports = free_ports(1)
    settings = {"metricsPort": str(ports[0]), "metricsAddress": "127.0.0.1"}
    async with LocalGroup(tmp_path, nodes=3) as group:
        first = await group.wait_leader()
        watched = next(node_id for node_id in group.nodes if node_id != first)
        conf = group.node(watched).conf_path
        conf.write_text(conf.read_text() + "".join(f"{key}={value}\n" for key, value in settings.items()))
        await group.restart(watched)
        await group.wait_caught_up(watched)

        def ask(path: str) -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}{path}", timeout=5) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code

        async def until(path: str, status: int) -> None:
            async with asyncio.timeout(20):
                while True:
                    if await asyncio.to_thread(ask, path) == status:
                        return
                    await asyncio.sleep(0.05)

        assert probe_paths() == {"/livez", "/readyz"}
        for path in probe_paths():
            await until(path, 200)
        leader = await group.wait_leader()
        command = shell_words(container()["lifecycle"]["preStop"]["exec"]["command"], f"dledger-{leader[1:]}")
        done = await asyncio.to_thread(run_dledger, [*command[1:], "--peers", group.peers, "--group", group.group])
        assert f"leadership {leader} → " in done
        again = await asyncio.to_thread(run_dledger, [*command[1:], "--peers", group.peers, "--group", group.group])
        assert f"{leader} does not lead" in again
        for node_id in group.nodes:
            if node_id != watched:
                await group.kill(node_id)
        await until("/readyz", 503)
        assert await asyncio.to_thread(ask, "/livez") == 200


def run_dledger(arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dledger", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- the ecosystem's own linters


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_linters_find_nothing(tmp_path: Path) -> None:
    """hadolint, the compose specification's schema, and Kubernetes's own schemas, from an environment of their own."""
    environment = Environment(tmp_path / "venv")
    environment.install(*project()["optional-dependencies"]["ship"])
    environment.run("hadolint", "--no-color", str(DOCKERFILE), cwd=tmp_path)
    environment.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE), cwd=tmp_path)
    environment.run("kubernetes-validate", "--strict", str(MANIFESTS), cwd=tmp_path)


def test_every_deployment_file_is_looked_at() -> None:
    there = {path for path in (REPOSITORY / "deploy").rglob("*") if path.is_file()}
    ours = {path for path in there if not fnmatch.fnmatch(path.name, "*dashboard*") and "monitoring" not in path.parts}
    assert ours == {UNIT, MANIFESTS}
