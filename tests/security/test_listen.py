"""Nobody listens in plaintext beyond the machine by mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dledger.config import DLedgerConfig
from dledger.errors import ConfigError
from dledger.security.listen import check_listeners, is_loopback
from tests.security.conftest import tls_settings


def config(peer: str = "n0-127.0.0.1:0", **settings: str) -> DLedgerConfig:
    return DLedgerConfig.from_mapping({"group": "g", "selfId": "n0", "peers": peer, "storeType": "MEMORY", **settings})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1", "[::1]"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "10.0.0.1", "no-such-host.invalid", "", "2001:db8::1"])
def test_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("peer", ["n0-127.0.0.1:0", "n0-localhost:0"])
def test_loopback_needs_nothing(peer):
    check_listeners(config(peer))


@pytest.mark.parametrize("settings", [{"bindAddress": "0.0.0.0"}, {"bindAddress": "::"}, {"bindAddress": "192.0.2.7"}])
def test_plaintext_beyond_the_machine_is_refused_and_the_message_says_what_to_do(settings):
    with pytest.raises(ConfigError) as caught:
        check_listeners(config(**settings))
    for word in (settings["bindAddress"], "tlsCertFile", "127.0.0.1", "--insecure", "allowPlaintext=all"):
        assert word in str(caught.value)
    check_listeners(config(**settings, allowPlaintext="all"))


def test_an_advertised_address_is_listened_on_too():
    with pytest.raises(ConfigError, match=r"192\.0\.2\.7"):
        check_listeners(config("n0-192.0.2.7:1"))
    check_listeners(config("n0-192.0.2.7:1", bindAddress="127.0.0.1"))


def test_tls_needs_no_permission_but_metrics_do(certs):
    tls = tls_settings(certs, "n0")
    check_listeners(config(bindAddress="0.0.0.0", **tls))
    check_listeners(config(bindAddress="0.0.0.0", metricsPort="0", **tls))
    with pytest.raises(ConfigError, match="allowPlaintext=metrics"):
        check_listeners(config(metricsPort="0", metricsAddress="0.0.0.0"))
    check_listeners(config(metricsPort="0", metricsAddress="0.0.0.0", allowPlaintext="metrics"))
    with pytest.raises(ConfigError):
        check_listeners(config(bindAddress="0.0.0.0", allowPlaintext="metrics"))


@pytest.mark.parametrize(
    "settings",
    [
        {"tlsCertFile": "a"},
        {"tlsCertFile": "a", "tlsKeyFile": "b"},
        {"tlsCaFile": "a"},
        {"tlsClientPort": "1"},
    ],
)
def test_half_of_tls_is_an_error(settings):
    with pytest.raises(ConfigError, match="tls"):
        config(**settings)


@pytest.mark.asyncio
async def test_an_embedded_node_is_held_to_it_too(tmp_path):
    from dledger import DLedgerServer

    with pytest.raises(ConfigError, match="--insecure"):
        await DLedgerServer(config(bindAddress="0.0.0.0")).start()


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    settings = ("group=g", "selfId=n0", "peers=n0-127.0.0.1:0", "storeType=MEMORY", "bindAddress=0.0.0.0")
    values = [word for setting in settings for word in ("-D", setting)]
    command = [sys.executable, "-m", "dledger", "start", *values, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_refuses_with_the_exit_code_of_a_configuration_error():
    refused = start()
    assert refused.returncode == 4
    assert "--insecure" in refused.stderr
    assert "1 error" in refused.stderr


def test_insecure_is_a_flag_of_the_command():
    assert start("--insecure", "--check").returncode == 0
