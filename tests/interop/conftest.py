"""Real clients in environments of their own, and a real group of processes for them to talk to.

The clients come from PyPI, npm, Maven Central and the Go module proxy, into ``.venv-interop-*`` folders that stay for the
next run. Where a registry does not answer, the tests that need it are skipped and say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dledger.local_group import free_ports
from tests.broker.harness import HOST
from tests.interop.driver import Driver, Process

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CPP_PACKAGE = "rocketmq==0.4.4"
NODE_PACKAGE = "ali-ons@3.12.0"
INSTALL_TIMEOUT_S = 240


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S)


@pytest.fixture(scope="session")
def cpp_python() -> str:
    """The interpreter of an environment with the C++ client."""
    home = REPOSITORY / ".venv-interop-cpp"
    python = home / "bin" / "python"
    marker = home / f"installed-{CPP_PACKAGE}"
    if not marker.exists():
        try:
            _run(sys.executable, "-m", "venv", "--clear", str(home))
            _run(str(python), "-m", "pip", "install", "--quiet", CPP_PACKAGE)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"PyPI's {CPP_PACKAGE} cannot be installed: {error}")
        marker.touch()
    return str(python)


@pytest.fixture(scope="session")
def node_modules() -> str:
    """The folder with the npm client."""
    home = REPOSITORY / ".venv-interop-node"
    marker = home / f"installed-{NODE_PACKAGE}"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    if not marker.exists():
        try:
            home.mkdir(exist_ok=True)
            (home / "package.json").write_text("{}", encoding="utf-8")
            _run("npm", "install", "--no-audit", "--no-fund", NODE_PACKAGE, cwd=home)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm's {NODE_PACKAGE} cannot be installed: {error}")
        marker.touch()
    return str(home / "node_modules")


class RealGroup:
    """mqnamesrv and three mqbrokers as processes. ``beside``: another group, whose name server is used."""

    def __init__(
        self, root: Path, more_settings: str = "", *, name: str = "RaftNode00", beside: RealGroup | None = None
    ) -> None:
        self.root = root
        self.name = name
        self._more_settings = more_settings
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        if beside is None:
            (port,) = free_ports(1)
            self.namesrv = f"{HOST}:{port}"
            self._spawn("namesrv", "broker_adapter.namesrv.main", "--port", str(port))
        else:
            self.namesrv = beside.namesrv
        peers = free_ports(3)
        self.ports = free_ports(3)
        text = ";".join(f"n{number}-{HOST}:{one}" for number, one in enumerate(peers))
        for number, listen in enumerate(self.ports):
            self._conf(number).write_text(
                f"""brokerClusterName=RaftCluster
brokerName={name}
brokerIP1={HOST}
listenPort={listen}
namesrvAddr={self.namesrv}
storePathRootDir={root / f"node{number}"}
enableDLegerCommitLog=true
dLegerGroup={name}
dLegerPeers={text}
dLegerSelfId=n{number}
mappedFileSizeCommitLog=64MiB
mappedFileSizeConsumeQueue=20000
maxHashSlotNum=10000
maxIndexNum=40000
messageDelayLevel=1s 1s 1s 2s 2s 2s
traceTopicEnable=true
{self._more_settings}
""",
                encoding="utf-8",
            )
            self.start(number)
        self.master()

    def _conf(self, number: int) -> Path:
        return self.root / f"n{number}.conf"

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": str(self.root)}
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
            )

    def start(self, number: int) -> None:
        self._spawn(f"n{number}", "broker_adapter.broker.main", "-c", str(self._conf(number)))

    def admin(self, *arguments: str) -> str:
        """Run mqadmin; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "broker_adapter.admin", *arguments, "-n", self.namesrv],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.stdout

    def admin_until(self, word: str, *arguments: str, timeout_s: float = 60) -> str:
        """Run mqadmin until it says ``word``: while there is no master, or on a busy machine, it may not at once."""
        deadline = time.monotonic() + timeout_s
        while word not in (said := self.admin(*arguments)):
            assert time.monotonic() < deadline, f"mqadmin {' '.join(arguments)} said {said!r}; logs in {self.root}"
        return said

    def master(self, *, other_than: int | None = None, timeout_s: float = 60) -> int:
        """Number of the node that is registered as master."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = json.loads(self.admin("clusterList", "-o", "json") or "[]")
            for row in rows:
                if row["brokerName"] == self.name and row["brokerId"] == 0 and row["up"]:
                    number = self.ports.index(int(row["address"].rpartition(":")[2]))
                    if number != other_than:
                        return number
            assert time.monotonic() < deadline, f"no master: {rows}; logs in {self.root}"

    def kill(self, number: int) -> None:
        """kill -9, by the pid of our own child."""
        child = self._children[f"n{number}"]
        child.send_signal(signal.SIGKILL)
        child.wait()

    @property
    def any_broker(self) -> str:
        """Address of a broker, the master or not."""
        return f"{HOST}:{self.ports[0]}"

    def create_topic(self, topic: str, queues: int = 4) -> None:
        size = ("-r", str(queues), "-w", str(queues))
        self.admin_until("success", "updateTopic", "-c", "RaftCluster", "-t", topic, *size)
        deadline = time.monotonic() + 20
        while topic not in self.admin("topicList").split():
            assert time.monotonic() < deadline, "the topic was not registered"

    def stop(self) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Clients:
    """Starts client processes of one kind and ends what it started."""

    def __init__(self, kind: str, command: list[str], env: dict[str, str], group: RealGroup) -> None:
        self.kind = kind
        self._command = command
        self._env = env
        self._group = group
        self._running: list[Process] = []

    def run(self, mode: str, group: str, topic: str, *arguments: str, wait: bool = True) -> Process:
        command = [*self._command, mode, self._group.namesrv, group, topic, *arguments]
        process = Process(command, self._env, self._group.root / f"client-{self.kind}.log")
        self._running.append(process)
        if wait:
            assert process.next() == {"ready": True}
        return process

    def end(self) -> None:
        for process in self._running:
            process.end()
        self._running.clear()


@pytest.fixture(scope="module")
def real_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGroup]:
    group = RealGroup(tmp_path_factory.mktemp("interop"))
    yield group
    group.stop()


def cpp_clients(python: str, group: RealGroup) -> Clients:
    # It writes logs below HOME.
    env = {"HOME": str(group.root), "PATH": os.environ.get("PATH", "")}
    return Clients("cpp", [python, str(HERE / "clients" / "cpp_client.py")], env, group)


def ali_clients(modules: str, group: RealGroup) -> Clients:
    env = {"HOME": str(group.root), "PATH": os.environ.get("PATH", ""), "NODE_PATH": modules}
    return Clients("ali", ["node", str(HERE / "clients" / "ali_client.js")], env, group)


@pytest.fixture
def cpp(cpp_python: str, real_group: RealGroup) -> Iterator[Clients]:
    clients = cpp_clients(cpp_python, real_group)
    yield clients
    clients.end()


@pytest.fixture
def ali(node_modules: str, real_group: RealGroup) -> Iterator[Clients]:
    clients = ali_clients(node_modules, real_group)
    yield clients
    clients.end()


@pytest.fixture(params=["cpp", "ali"])
def clients(request: pytest.FixtureRequest) -> Clients:
    """Each kind in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Clients)
    return found


# ---------------------------------------------------------------------- Java and Go: programs of ours on their clients

JAVA_VERSIONS = ("4.9.8", "5.3.3")
"""The last of 4.x, whose protocol this is, and one of 5.x, which still speaks it."""

_DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"
_TOOLS_LOGGING = '<configuration><root level="OFF"/></configuration>\n'


def _missing(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def _built(home: Path, sources: list[Path], *commands: list[str], cwd: Path | None = None) -> None:
    """Run commands unless they have run for these sources before; skips where they fail."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    marker = home / "built-from"
    if marker.exists() and marker.read_text(encoding="utf-8") == digest:
        return
    home.mkdir(parents=True, exist_ok=True)
    for command in commands:
        try:
            _run(*command, cwd=cwd)
        except subprocess.CalledProcessError as error:
            said = (error.stderr + error.stdout).decode("utf-8", "replace").strip().splitlines()
            pytest.skip(f"{' '.join(command[:3])} failed: {said[-1:]}; see {home}")
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"{' '.join(command[:3])} failed: {error}")
    marker.write_text(digest, encoding="utf-8")


def _java_home(version: str) -> Path:
    """The folder with the client's jars and our driver compiled against them."""
    _missing("java", "javac", "mvn")
    home = REPOSITORY / f".venv-interop-java-{version}"
    pom, source = HERE / "java" / "pom.xml", HERE / "java" / "Driver.java"
    fetch = [
        "mvn", "-q", "-B", "-f", str(pom), f"-Drocketmq.version={version}",
        f"{_DEPENDENCY_PLUGIN}:copy-dependencies", f"-DoutputDirectory={home / 'jars'}",
    ]  # fmt: skip
    _built(home / "jars", [pom], fetch)
    compile_ = ["javac", "-nowarn", "-d", str(home / "classes"), "-cp", f"{home / 'jars'}/*", str(source)]
    _built(home / "classes", [pom, source], compile_)
    return home


def java_driver(version: str, group: RealGroup, *options: str) -> Driver:
    """Start Apache's Java client. ``options``: for the virtual machine."""
    home = _java_home(version)
    # It logs below user.home; its admin tools read their logging's settings from rocketmq.home.dir.
    (group.root / "conf").mkdir(exist_ok=True)
    (group.root / "conf" / "logback_tools.xml").write_text(_TOOLS_LOGGING, encoding="utf-8")
    command = [
        "java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        f"-Duser.home={group.root}", f"-Drocketmq.home.dir={group.root}", f"-Drocketmq.client.logRoot={group.root}",
        *options, "-cp", f"{home / 'classes'}:{home / 'jars'}/*", "Driver", group.namesrv,
    ]  # fmt: skip
    kind = "java" + version.replace(".", "")
    return Driver(
        kind, command, {"PATH": os.environ.get("PATH", "")}, group.root / f"client-{kind}.log", group.any_broker
    )


def go_driver(group: RealGroup) -> Driver:
    """Start Apache's Go client."""
    _missing("go")
    source = HERE / "go"
    home = REPOSITORY / ".venv-interop-go"
    files = [source / name for name in ("go.mod", "go.sum", "main.go")]
    _built(home, files, ["go", "build", "-o", str(home / "client"), "."], cwd=source)
    env = {"HOME": str(group.root), "PATH": os.environ.get("PATH", "")}
    return Driver("go", [str(home / "client"), group.namesrv], env, group.root / "client-go.log", group.any_broker)
