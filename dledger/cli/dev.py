"""``dledger dev`` and the verbs that hurt and heal its group: ``kill``, ``pause``, ``resume``, ``cut``, ``heal``."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dledger.cli.completion import complete_nodes
from dledger.cli.exit_codes import ExitCode
from dledger.cli.options import parse_overrides, per_second
from dledger.dev.state import (
    DATA_VARIABLE,
    DEFAULT_DIRECTORY,
    DevState,
    data_directory,
    live_pid,
    pid_path,
    signal_process,
)
from dledger.errors import DLedgerError, UnavailableError, UnknownMemberError

if TYPE_CHECKING:
    from dledger.cli.group_view import GroupView
    from dledger.dev.session import DevOptions, DevSession

__all__ = ["cut", "dev", "heal", "kill", "pause", "resume"]

_F = TypeVar("_F", bound=Callable[..., Any])

_SUCCESSOR_S: Final = 5.0
_POLL_S: Final = 0.01


def _data_option(command: _F) -> _F:
    return click.option(
        "--data",
        "data",
        type=click.Path(),
        metavar="DIR",
        help=f"The group's folder.  [env {DATA_VARIABLE}; default: ./{DEFAULT_DIRECTORY}]",
    )(command)


# ---------------------------------------------------------------- dev


@click.command()
@_data_option
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="How many.")
@click.option("--fresh", is_flag=True, help="Clear the folder first.")
@click.option("--load", type=per_second, metavar="N/s", help="Append so many small entries a second all the time.")
@click.option("--broker", is_flag=True, help="Make the nodes RocketMQ-compatible brokers, with a name server.")
@click.option("--port", type=click.IntRange(0, 65535), help="The page's port.  [default: 8911, if taken another]")
@click.option("--port-base", type=click.IntRange(1, 65500), help="n0's port, n1 has the next.  [default: free ones]")
@click.option("-D", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of every node.")
def dev(
    data: str | None,
    nodes: int,
    fresh: bool,
    load: float | None,
    broker: bool,
    port: int | None,
    port_base: int | None,
    overrides: tuple[str, ...],
) -> int:
    """Start a group on this machine, with a page to watch and to hurt it, until Ctrl-C.

    Real processes on free ports. The data stays; the next start goes on with it. In another terminal, from the same
    folder: dledger status, dledger append hello, dledger kill leader, dledger resume n1.
    """
    from dledger.cli.runtime import run
    from dledger.dev.session import DevOptions

    options = DevOptions(
        directory=data_directory(data),
        nodes=nodes,
        fresh=fresh,
        load=load,
        broker=broker,
        page_port=port,
        port_base=port_base,
        settings=parse_overrides(overrides),
    )
    return run(_dev(options))


async def _dev(options: DevOptions) -> int:
    import asyncio

    from dledger.cli.runtime import on_stop_signals, until
    from dledger.dev.session import DevSession

    ended = asyncio.Event()
    task = asyncio.current_task()
    ready = False

    def end() -> None:
        if ready:
            ended.set()
        elif task is not None:
            task.cancel()  # still starting: nothing to wait for

    on_stop_signals(end)
    try:
        async with DevSession(options, lambda text: click.echo(text, err=True)) as session:
            ready = True
            _tell(session)
            await until(ended, session.watcher.failed)
            click.echo("stopping", err=True)
    except asyncio.CancelledError:
        click.echo("interrupted", err=True)
        return ExitCode.INTERRUPTED
    click.echo(f"stopped; data kept in {_short(options.directory)}", err=True)
    return ExitCode.DONE


def _short(path: Path) -> str:
    try:
        return f"./{path.relative_to(Path.cwd())}"
    except ValueError:
        return str(path)


def _tell(session: DevSession) -> None:
    """Say what runs, where, and what to try."""
    for node_id, node in session.group.nodes.items():
        leads = "  leader" if node_id == session.leader else ""
        click.echo(f"  {node_id:4}  {node.address}  pid {node.pid}{leads}")
    state, options = session.state, session.options
    rows = [("data", f"{_short(options.directory)} (kept; --fresh clears it)")]
    rows.append(("ready", f"{session.leader} leads and has committed after {session.ready_s:.1f} s"))
    if state.page:
        rows.append(("page", state.page_url))
    if session.load is not None:
        rows.append(("load", f"{session.load.rate:g} entries a second"))
    if state.namesrv:
        rows.append(("names", f"{state.namesrv} (brokers at {', '.join(map(str, session.broker_ports))})"))
    rows.append(("try", "dledger status    dledger append hello    dledger kill leader    dledger heal"))
    if state.namesrv:
        rows.append(("", f"mqadmin clusterList -n {state.namesrv}"))
    if options.directory != data_directory(None):
        rows.append(("", f"with DLEDGER_DEV_DATA={options.directory}"))
    rows.append(("stop", "Ctrl-C"))
    for name, text in rows:
        click.echo(f"  {name:6}{text}")


# ---------------------------------------------------------------- the verbs


def _state(data: str | None) -> tuple[Path, DevState]:
    """Return the folder and the group in it.

    Raises:
        UnavailableError: there is none.
    """
    directory = data_directory(data)
    state = DevState.load(directory)
    if state is None:
        raise UnavailableError(f"no dev group in {directory}; start one: dledger dev, or name its folder: --data")
    return directory, state


def _view(state: DevState) -> GroupView:
    """Ask the nodes, without gRPC: a verb is over before that would be loaded."""
    from dledger.cli.group_view import GroupView
    from dledger.client.bare_status import bare_status
    from dledger.client.peers import parse_peers

    nodes = bare_status(parse_peers(state.peers), state.group)
    if nodes is None:
        raise UnavailableError("the nodes do not answer as those of a dev group do; dledger status may say more")
    return GroupView(state.group, nodes)


def _resolve(state: DevState, node: str) -> tuple[str, str | None]:
    """Return (the node id that NODE means, who leads if that had to be asked).

    Raises:
        UnavailableError: nobody leads.
        UnknownMemberError: there is no such node.
    """
    if node == "leader":
        leader = _view(state).leader_id
        if leader is None:
            raise UnavailableError("nobody leads at the moment")
        return leader, leader
    if node not in state.node_ids:
        raise UnknownMemberError(f'"{node}" is no node; there are {", ".join(state.node_ids)}, and leader')
    return node, None


def _run_verb(body: Callable[[], str]) -> int:
    """Print what was done; exit code 5 where nothing runs that could do it."""
    try:
        click.echo(body())
    except UnavailableError as error:
        click.echo(f"dledger: {error}", err=True)
        return ExitCode.UNREACHABLE
    except DLedgerError as error:
        click.echo(f"dledger: {error}", err=True)
        return ExitCode.FAILED
    return ExitCode.DONE


def _ask(state: DevState, action: str, node: str = "") -> str:
    from dledger.dev.control import ask

    if not state.running:
        raise UnavailableError(
            f"dledger dev (pid {state.pid}) does not run any more, and {action} needs it; start it again"
        )
    return ask(state, action, node)


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@_data_option
def kill(node: str, data: str | None) -> int:
    """Kill -9 NODE (or leader) of the dev group, by its pid file. dledger resume starts it again."""

    def body() -> str:
        directory, state = _state(data)
        node_id, leader = _resolve(state, node)
        pid = signal_process(pid_path(directory, node_id), signal.SIGKILL)
        killed = time.monotonic()
        words = f"killed {node_id}{', the leader' if leader else ''} (pid {pid}, SIGKILL)"
        return f"{words}\n{_successor(state, node_id, killed)}" if leader else words

    return _run_verb(body)


def _successor(state: DevState, old: str, killed: float) -> str:
    """Wait for the next leader; returns who it is and after how long."""
    while time.monotonic() - killed < _SUCCESSOR_S:
        with contextlib.suppress(UnavailableError):  # a connection that breaks just now is no plain answer
            view = _view(state)
            if view.leader_id not in {None, old}:
                took_ms = (time.monotonic() - killed) * 1000
                return f"{view.leader_id} leads term {view.term}, seen {took_ms:.0f} ms after the kill"
        time.sleep(_POLL_S)
    return f"nobody leads {_SUCCESSOR_S:g} s after the kill: is a majority up? dledger status says"


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@_data_option
def pause(node: str, data: str | None) -> int:
    """Pause NODE (or leader) of the dev group: it hangs, its connections stay. dledger resume lets it go on."""

    def body() -> str:
        directory, state = _state(data)
        node_id, leader = _resolve(state, node)
        pid = signal_process(pid_path(directory, node_id), signal.SIGSTOP)
        return f"paused {node_id}{', the leader' if leader else ''} (pid {pid}, SIGSTOP)"

    return _run_verb(body)


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@_data_option
def resume(node: str, data: str | None) -> int:
    """Let a paused NODE go on, or start a killed one again."""

    def body() -> str:
        directory, state = _state(data)
        node_id, _ = _resolve(state, node)
        path = pid_path(directory, node_id)
        if live_pid(path) is None:
            return _ask(state, "resume", node_id)
        signal_process(path, signal.SIGCONT)
        return f"{node_id} goes on"

    return _run_verb(body)


@click.command()
@click.argument("node", shell_complete=complete_nodes)
@_data_option
def cut(node: str, data: str | None) -> int:
    """Cut NODE (or leader) off from the others: bytes are lost, nobody is told. Clients still reach it."""

    def body() -> str:
        _, state = _state(data)
        return _ask(state, "cut", _resolve(state, node)[0])

    return _run_verb(body)


@click.command()
@click.argument("node", required=False, default="", shell_complete=complete_nodes)
@_data_option
def heal(node: str, data: str | None) -> int:
    """Undo everything in the dev group, or at NODE: connect, let go on, start again."""

    def body() -> str:
        _, state = _state(data)
        return _ask(state, "heal", _resolve(state, node)[0] if node else "")

    return _run_verb(body)
