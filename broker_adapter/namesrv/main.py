"""``mqnamesrv``: the name server in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from broker_adapter.namesrv.server import NameServer, NameServerOptions
from broker_adapter.process import pid_file, run_command, run_loop, serve
from dledger.config import BadValueError, parse_conf, parse_integer
from dledger.errors import ConfigError
from dledger.log import configure_logging

__all__ = ["main"]

_NO_EFFECT = frozenset(
    "rocketmqHome configStorePath productEnvName clusterTest orderMessageEnable returnOrderTopicConfigToBroker".split()  # noqa: SIM905
)


def _read(path: str) -> dict[str, str]:
    """Read a name server's file: ``listenPort``, ``bindAddress``, ``kvConfigPath``, ``scanNotActiveBrokerInterval``."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}:1:1: cannot be read: {error.strerror or error}"]) from None
    assignments, problems = parse_conf(content, path)
    known = {"listenPort", "bindAddress", "kvConfigPath", "scanNotActiveBrokerInterval", "brokerTimeout"}
    values: dict[str, str] = {}
    for item in assignments:
        if item.key in known:
            values[item.key] = item.value
        elif item.key not in _NO_EFFECT and not item.key.startswith("server"):
            problems.append(
                f'{path}:{item.line}:{item.column}: unknown key "{item.key}"; known: {", ".join(sorted(known))}'
            )
    for key in ("listenPort", "scanNotActiveBrokerInterval", "brokerTimeout"):
        try:
            parse_integer(values.get(key, "0"))
        except BadValueError as error:
            problems.append(f"{path}:1:1: {key}: {error}")
    if problems:
        raise ConfigError(problems)
    return values


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--configFile", "file", metavar="FILE", help="key=value file (listenPort, kvConfigPath …).")
@click.option("-n", "--namesrvAddr", "ignored", metavar="ADDRESS", help="Accepted as upstream's; has no effect.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; beats the file.")
@click.option("-p", "--printConfigItem", "show", is_flag=True, help="Print the effective settings and exit.")
@click.option("--pid-file", "pid_path", type=click.Path(path_type=Path), help="Write the process id here.")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
def mqnamesrv(
    file: str | None, ignored: str | None, port: int | None, show: bool, pid_path: Path | None, log_level: str
) -> int:
    """Run a name server until SIGTERM or Ctrl-C."""
    values = _read(file) if file else {}
    path = values.get("kvConfigPath") or str(Path.home() / "namesrv" / "kvConfig.json")
    options = NameServerOptions(
        host=values.get("bindAddress") or None,
        port=port if port is not None else int(values.get("listenPort", "9876")),
        kv_config_path=Path(path),
        broker_timeout_ms=int(values.get("brokerTimeout", "120000")),
        scan_interval_ms=int(values.get("scanNotActiveBrokerInterval", "10000")),
    )
    if show:
        click.echo(f"listenPort={options.port}\nbindAddress={options.host or ''}\nkvConfigPath={path}")
        click.echo(f"brokerTimeout={options.broker_timeout_ms}\nscanNotActiveBrokerInterval={options.scan_interval_ms}")
        return 0
    configure_logging(log_level)
    with pid_file(pid_path):
        return run_loop(serve(NameServer(options)))


def main() -> None:
    """Entry point."""
    run_command(mqnamesrv, "mqnamesrv")


if __name__ == "__main__":
    main()
