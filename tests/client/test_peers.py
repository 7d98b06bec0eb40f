"""The forms in which the nodes may be named."""

from __future__ import annotations

import pytest

from dledger.client.discovery import Directory
from dledger.client.peers import parse_peers
from dledger.client.transport import Header
from dledger.errors import ConfigError


@pytest.mark.parametrize(
    ("peers", "nodes"),
    [
        (
            "n0-127.0.0.1:20911;n1-127.0.0.1:20912;n2-127.0.0.1:20913",
            {"n0": "127.0.0.1:20911", "n1": "127.0.0.1:20912", "n2": "127.0.0.1:20913"},
        ),
        ("n0-host:1", {"n0": "host:1"}),
        ("n0-[::1]:1;n1-[fe80::1%eth0]:2;", {"n0": "[::1]:1", "n1": "[fe80::1%eth0]:2"}),
        ("b-a.example:1;c-my-host:2", {"b": "a.example:1", "c": "my-host:2"}),
        ("broker-10.0.0.1:1", {"broker": "10.0.0.1:1"}),
        ("my-host:1,other:2", {"my-host:1": "my-host:1", "other:2": "other:2"}),
        (["127.0.0.1:1", " [::1]:2 "], {"127.0.0.1:1": "127.0.0.1:1", "[::1]:2": "[::1]:2"}),
        (("n0-h:1", "n1-h:2"), {"n0": "h:1", "n1": "h:2"}),
        ({"x": "h:1", "y": "[::1]:2"}, {"x": "h:1", "y": "[::1]:2"}),
    ],
)
def test_forms(peers, nodes):
    assert parse_peers(peers) == nodes
    assert list(parse_peers(peers)) == list(nodes)


@pytest.mark.parametrize(
    "peers",
    [
        "", ";", ",", "host", "host:", ":1", "host:0", "host:65536", "host:x", "n0-host;n1-host:2", "h:1,h:1",
        "n0-h:1;n0-h:2", "n0-h:1;n1-h:1", "::1:5", "[::1:5", "[nope]:5", "a b:1", "h:1:2", [], [5], {}, {"": "h:1"},
        {"a": "h"}, b"h:1", 5, None,
    ],
)  # fmt: skip
def test_wrong_forms_are_configuration_errors(peers):
    with pytest.raises(ConfigError) as caught:
        parse_peers(peers)
    assert all(problem.startswith("peers:") for problem in caught.value.problems)


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_peers("n0-a;n1-b:99999;n2-c:3")
    assert len(caught.value.problems) == 2


def header(node_id="", term=1, leader_id="", leader_address=""):
    return Header(200, "", node_id, term, leader_id, leader_address)


def test_a_node_known_by_its_address_gets_its_id():
    directory = Directory({"h0:1": "h0:1", "h1:1": "h1:1"})
    directory.learn("h1:1", header("n1"))
    assert directory.nodes == {"h0:1": "h0:1", "n1": "h1:1"}


def test_the_address_that_works_is_preferred_to_the_advertised_one():
    directory = Directory({"n0": "outside:1", "n1": "outside:2"})
    assert directory.learn("outside:1", header("n0", 3, "n1", "inside:2")) == "outside:2"
    assert directory.addresses() == ["outside:2", "outside:1"]


def test_an_unknown_leader_is_added_and_an_older_term_is_not_believed():
    directory = Directory({"n0": "a:1"})
    assert directory.learn("a:1", header("n0", 5, "n7", "b:1")) == "b:1"
    assert directory.leader_address == "b:1"
    directory.learn("a:1", header("n0", 4, "n0", "a:1"))
    assert directory.leader_address == "b:1"
    directory.forget_leader("b:1")
    assert directory.leader_address is None


def test_reads_prefer_the_leader_and_take_turns_among_the_rest():
    directory = Directory({"n0": "a:1", "n1": "b:1", "n2": "c:1"})
    directory.learn("a:1", header("n0", 1, "n1"))
    routes = [directory.route() for _ in range(4)]
    assert {route[0] for route in routes} == {"b:1"}
    assert {route[1] for route in routes} == {"a:1", "c:1"}
