"""``mqbroker``: one broker in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from broker_adapter.broker.broker import Broker, store_config
from broker_adapter.broker.manage import effective_properties
from broker_adapter.config import BrokerConfig
from broker_adapter.config.loader import dledger_settings
from broker_adapter.process import pid_file, run_loop, serve
from broker_adapter.store.api import MessageStore
from broker_adapter.store.factory import open_store
from dledger.errors import ConfigError
from dledger.log import configure_logging

__all__ = ["mqbroker", "open_message_store"]

_IMPORTANT = (
    "namesrvAddr",
    "brokerIP1",
    "brokerName",
    "brokerClusterName",
    "brokerId",
    "autoCreateTopicEnable",
    "autoCreateSubscriptionGroup",
    "brokerRole",
    "flushDiskType",
    "listenPort",
    "storePathRootDir",
    "enableDLegerCommitLog",
    "dLegerGroup",
    "dLegerPeers",
    "dLegerSelfId",
)


def open_message_store(config: BrokerConfig, store_host: tuple[str, int]) -> MessageStore:
    """Return the store that a broker's configuration asks for, not started."""
    settings = dledger_settings(config) if config.enable_dledger_commit_log else {}
    return open_store(store_config(config, store_host, settings))


def _overrides(namesrv: str | None, pairs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"-D {pair}: write KEY=VALUE")
        found[key] = value
    if namesrv:
        found["namesrvAddr"] = namesrv
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--configFile", "file", metavar="FILE", help="The broker's key=value file.")
@click.option("-n", "--namesrvAddr", "namesrv", metavar="ADDRESS", help="Name servers, ;-separated; beats the file.")
@click.option("-D", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a key; beats the file.")
@click.option("-p", "--printConfigItem", "show", is_flag=True, help="Print the effective settings and exit.")
@click.option("-m", "--printImportantConfig", "important", is_flag=True, help="Print the important ones and exit.")
@click.option("--pid-file", "pid_path", type=click.Path(path_type=Path), help="Write the process id here.")
def mqbroker(
    file: str | None, namesrv: str | None, pairs: tuple[str, ...], show: bool, important: bool, pid_path: Path | None
) -> int:
    """Run a broker until SIGTERM or Ctrl-C, which hand leadership over and unregister first."""
    config = BrokerConfig.from_file(file, _overrides(namesrv, pairs))
    if show or important:
        lines = effective_properties(config).splitlines()
        click.echo("\n".join(line for line in lines if show or line.partition("=")[0] in _IMPORTANT))
        return 0
    if config.log_level not in {"debug", "info", "warning", "error"} or config.log_format not in {
        "auto",
        "json",
        "console",
    }:
        raise ConfigError([f"logLevel={config.log_level} or logFormat={config.log_format}: not one of the choices"])
    configure_logging(config.log_level, config.log_format)
    for note in config.notes:
        click.echo(f"note: {note}", err=True)
    with pid_file(pid_path):
        return run_loop(serve(Broker(config, open_message_store)))
