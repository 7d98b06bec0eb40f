"""Configuration: what is accepted, what is refused and where, and which source wins."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dledger.config import SETTINGS, DLedgerConfig, Kind, Origin, OriginKind, Peer, format_peers, parse_peers
from dledger.config.conf_file import MAX_FILE_BYTES, parse_conf
from dledger.config.render import explain, markdown_page, sample_file
from dledger.config.setting import environment_name
from dledger.config.values import BadValueError, format_bytes, parse_bytes, parse_milliseconds
from dledger.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = "n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913"
GOOD = f"dLegerGroup=g\ndLegerSelfId=n0\ndLegerPeers={PEERS}\n"


def make(**changes):
    values = {"group": "g", "self_id": "n0", "peers": parse_peers(PEERS)} | changes
    return DLedgerConfig(**values)


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "node.conf"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def problems_of(
    path: str | None, overrides: dict[str, str] | None = None, env: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        DLedgerConfig.from_file(path, overrides, env or {})
    return caught.value.problems


# ---------------------------------------------------------------- good input


def test_a_file_with_rocketmq_keys_gives_a_configuration(tmp_path: Path) -> None:
    config = DLedgerConfig.from_file(
        write(tmp_path, GOOD + "storePathRootDir=/data\nflushDiskType=ASYNC_FLUSH\n"), env={}
    )
    assert (config.group, config.self_id, config.flush_disk_type) == ("g", "n0", "ASYNC_FLUSH")
    assert config.peer == Peer("n0", "127.0.0.1", 40911)
    assert str(config.node_dir) == "/data/dledger-n0"
    assert config.bind_address == "127.0.0.1:40911"
    assert not config.sync_flush


def test_dledger_names_are_aliases(tmp_path: Path) -> None:
    text = f"group=g\nselfId=n1\npeers={PEERS}\nstoreBaseDir=/x\npreferredLeaderId=n1;n2\n"
    config = DLedgerConfig.from_file(write(tmp_path, text), env={})
    assert (config.group, config.self_id, config.store_path_root_dir) == ("g", "n1", "/x")
    assert config.preferred_leader_ids == ("n1", "n2")


def test_defaults_are_the_documented_ones() -> None:
    config = make()
    assert config.flush_disk_type == "SYNC_FLUSH"
    assert (config.heartbeat_interval_ms, config.election_timeout_ms) == (120, 600)
    assert config.max_entry_bytes == 4 * 1024 * 1024 - 48
    assert config.mapped_file_size_for_entry_data == 1024**3
    assert config.mapped_file_size_for_entry_index == 160 * 1024**2


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("=", " = ").replace("\n", "  \n"),
        "# comment\n! comment\n\n   \n" + GOOD,
        GOOD.replace(";n1", ";\\\n    n1"),
        GOOD.replace(";", "；").replace("127.0.0.1:", "127.0.0.1："),
        GOOD.replace(";", " ; ") + ";",
        GOOD.rstrip("\n"),
        GOOD.replace("40911", "4091\\u0031"),
    ],
    ids=["bom", "crlf", "spaces", "comments", "continued", "full-width", "list-spaces", "no-last-newline", "escape"],
)
def test_what_people_write_is_understood(tmp_path: Path, text: str) -> None:
    text = text.removesuffix(";")
    assert DLedgerConfig.from_file(write(tmp_path, text), env={}).peers == parse_peers(PEERS)


def test_a_misspelt_leger_is_taken_with_a_note(tmp_path: Path) -> None:
    config = DLedgerConfig.from_file(write(tmp_path, GOOD.replace("dLegerGroup", "dLedgerGroup")), env={})
    assert config.group == "g"
    assert [note.split(": ", 1)[1] for note in config.notes] == [
        '"dLedgerGroup" is taken for RocketMQ\'s spelling "dLegerGroup"'
    ]


def test_keys_of_a_broker_and_of_dledger_are_accepted_and_kept(tmp_path: Path) -> None:
    extra = (
        "listenPort=30911\nnamesrvAddr=127.0.0.1:9876\nbrokerName=b\nsendMessageThreadPoolNums=16\nmaxHeartBeatLeak=3\n"
    )
    config = DLedgerConfig.from_file(write(tmp_path, GOOD + extra), env={})
    assert config.broker_settings["listenPort"] == "30911"
    assert config.broker_settings["maxHeartBeatLeak"] == "3"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_sample_files_have_rocketmqs_eleven_keys_and_values(number: int) -> None:
    path = REPOSITORY / "conf" / "dledger" / f"broker-n{number}.conf"
    config = DLedgerConfig.from_file(path, env={})
    assert (config.group, config.self_id, config.store_path_root_dir) == (
        "RaftNode00",
        f"n{number}",
        f"/tmp/rmqstore/node0{number}",
    )
    assert format_peers(config.peers) == PEERS
    assignments, problems = parse_conf(path.read_bytes(), "x")
    assert not problems
    assert {a.key: a.value for a in assignments} == {
        "brokerClusterName": "RaftCluster",
        "brokerName": "RaftNode00",
        "listenPort": str(30911 + 10 * number),
        "namesrvAddr": "127.0.0.1:9876",
        "storePathRootDir": f"/tmp/rmqstore/node0{number}",
        "storePathCommitLog": f"/tmp/rmqstore/node0{number}/commitlog",
        "enableDLegerCommitLog": "true",
        "dLegerGroup": "RaftNode00",
        "dLegerPeers": PEERS,
        "dLegerSelfId": f"n{number}",
        "sendMessageThreadPoolNums": "16",
    }


# ---------------------------------------------------------------- bad input: everything at once, each with its place


def test_all_problems_come_at_once_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "dLegerGroup=g\n"
        "dLegerPeers=n0-127.0.0.1:1;n1_127.0.0.1:2;n2-host:99999\n"
        "  dLegerSelfId = n!\n"
        "flushDiskTyp=SYNC_FLUSH\n"
        "heartBeatTimeIntervalMs=soon\n"
        "storeType=TAPE\n"
        "just words\n"
        "maxEntryBytes=9GiB\n",
    )
    assert problems_of(path) == [
        f'{path}:2:28: dLegerPeers: "n1_127.0.0.1:2" is not ID-HOST:PORT',
        f'{path}:2:43: dLegerPeers: "99999" is not a port (0-65535)',
        f'{path}:3:18: dLegerSelfId: "n!" is not a node id (1-64 letters, digits, "_" or ".")',
        f'{path}:4:1: unknown key "flushDiskTyp"; did you mean "flushDiskType"?',
        f'{path}:5:25: heartBeatTimeIntervalMs: "soon" is not a time; write milliseconds, or a number with ms, s, min or h',
        f'{path}:6:11: storeType: "TAPE" is not one of FILE, MEMORY',
        f'{path}:7:1: expected key=value, found "just words"',
        f"{path}:8:15: maxEntryBytes: 9663676416 is out of range 1–7MiB",
    ]


def test_self_id_must_be_a_peer(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("SelfId=n0", "SelfId=n3"))
    assert problems_of(path) == [f'{path}:2:14: dLegerSelfId: "n3" is not in dLegerPeers (n0, n1, n2)']


@pytest.mark.parametrize("missing", ["dLegerGroup", "dLegerSelfId", "dLegerPeers"])
def test_group_self_and_peers_are_required(tmp_path: Path, missing: str) -> None:
    text = "".join(line + "\n" for line in GOOD.splitlines() if not line.startswith(missing))
    path = write(tmp_path, text)
    assert problems_of(path) == [f"{path}:1:1: {missing} is required"]


@pytest.mark.parametrize(
    ("lines", "blamed"),
    [
        ("electionTimeoutMs=250\n", "electionTimeoutMs: 250 ms is less than three heartbeats of 120 ms"),
        ("lostLeaderMinMs=70\n", "lostLeaderMaxMs: 60 ms is less than lostLeaderMinMs, 70 ms"),
        ("mappedFileSizeForEntryIndex=1000\n", "mappedFileSizeForEntryIndex: 1000 is not a multiple of 32"),
        ("mappedFileSizeForEntryData=1MiB\n", "maxEntryBytes: 4194256 bytes do not fit a data segment of 1048576"),
        ("maxBatchBytes=1MiB\n", "maxBatchBytes: 1048576 is less than one entry"),
        ("maxPendingBytes=1MiB\n", "maxPendingBytes: 1048576 is less than one batch"),
        ("preferredLeaderId=n1;n7\n", 'preferredLeaderIds: "n7" is not in dLegerPeers (n0, n1, n2)'),
        ("storeType=\n", "storeType has no value"),
        ("storeType=FILE # really\n", '"FILE # really" is not one of'),
        ("electionTimeoutMs=1s # slow\n", "a comment needs a line of its own"),
        ("bindAddress=a b\n", '"a b" is not a host name or address'),
        ("bindPort=70000\n", "bindPort: 70000 is out of range 0–65535"),
        ("dLegerGroup=h\n", 'dLegerGroup is set twice; line 1 has "g"'),
        ("group=h\n", 'dLegerGroup is set twice; line 1 has "g"'),
        ("a b=1\n", '"a b" is not a key'),
        ("logLevel＝info\n", 'a full-width "＝"; write key=value with "="'),
    ],
)
def test_bad_values_are_refused_with_reason(tmp_path: Path, lines: str, blamed: str) -> None:
    (problem,) = problems_of(write(tmp_path, GOOD + lines))
    assert blamed in problem
    if "lostLeaderMax" not in blamed and "maxEntryBytes" not in blamed:
        assert ".conf:4:" in problem


@pytest.mark.parametrize(
    ("peers", "wrong"),
    [
        ("n0", '"n0" is not ID-HOST:PORT'),
        ("n0-host", '"n0-host" is not ID-HOST:PORT'),
        ("n0-:1", '":1" is not HOST:PORT'),
        ("n0-host:", '"" is not a port'),
        ("n0-host:-1", '"-1" is not a port'),
        ("n0-host:65536", '"65536" is not a port'),
        ("n0-ho st:1", '"ho st" is not a host name'),
        ("n0-::1:99", "write an IPv6 address in brackets"),
        ("n0-[zz]:99", '"zz" is not an IPv6 address'),
        ("n#-host:1", '"n#" is not a node id'),
        ("n0-a:1;n0-b:1", 'node id "n0" is given twice'),
        ("n0-a:1;n1-a:1", "address a:1 is given twice"),
        (";;", "no peers"),
        ("", "no peers"),
    ],
)
def test_malformed_peers_are_refused(peers: str, wrong: str) -> None:
    with pytest.raises(BadValueError, match=re.escape(wrong)):
        parse_peers(peers)


def test_hosts_may_have_hyphens_and_be_ipv6() -> None:
    peers = parse_peers("n0-my-host-7.example:1;n1-[::1]:2")
    assert [(p.node_id, p.host, p.port, p.address) for p in peers] == [
        ("n0", "my-host-7.example", 1, "my-host-7.example:1"),
        ("n1", "::1", 2, "[::1]:2"),
    ]


def test_port_zero_is_for_a_group_of_one(tmp_path: Path) -> None:
    assert make(peers=parse_peers("n0-127.0.0.1:0")).bind_address == "127.0.0.1:0"
    with pytest.raises(ConfigError, match="group of one"):
        make(peers=parse_peers("n0-127.0.0.1:0;n1-127.0.0.1:1"))


def test_a_node_id_must_be_letter_and_number_while_the_broker_is_on(tmp_path: Path) -> None:
    text = GOOD.replace("SelfId=n0", "SelfId=alpha").replace("n0-", "alpha-")
    assert DLedgerConfig.from_file(write(tmp_path, text), env={}).self_id == "alpha"
    (problem,) = problems_of(write(tmp_path, text + "enableDLegerCommitLog=true\n"))
    assert '"alpha" must be a letter and a number, like n0, while enableDLegerCommitLog=true' in problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD.encode() + b"logLevel=\xff\n", ":4:10: not UTF-8 text"),
        (b"#" * (MAX_FILE_BYTES + 1), ":1:1: 1048577 bytes"),
    ],
    ids=["not-utf-8", "too-long"],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, problem: str) -> None:
    assert any(problem in line for line in problems_of(write(tmp_path, content)))


def test_a_missing_file_is_one_problem(tmp_path: Path) -> None:
    path = str(tmp_path / "none.conf")
    assert problems_of(path) == [f"{path}:1:1: cannot be read: No such file or directory"]


@given(st.binary(max_size=300))
def test_no_file_content_crashes_the_parser(content: bytes) -> None:
    assignments, problems = parse_conf(content, "f")
    assert all(a.key and a.line >= 1 and a.value_column > a.column >= 1 for a in assignments)
    assert all(problem.startswith("f:") for problem in problems)


@given(st.text(max_size=60))
def test_no_text_crashes_the_peers_parser(text: str) -> None:
    try:
        peers = parse_peers(text)
    except BadValueError as error:
        assert error.problems
    else:
        assert parse_peers(format_peers(peers)) == peers


def test_a_program_gets_the_same_checks() -> None:
    with pytest.raises(ConfigError) as caught:
        make(group="no good", max_inflight_count=0, store_type="TAPE", election_timeout_ms=1.5, peers="n0-a:1")
    text = "\n".join(caught.value.problems)
    for field in ("group", "max_inflight_count", "store_type", "election_timeout_ms", "peers"):
        assert f"DLedgerConfig.{field}: " in text
    with pytest.raises(ConfigError, match="self_id"):
        make(self_id="n9")
    with pytest.raises(ConfigError, match="self_id"):
        dataclasses.replace(make(), self_id="n9")


# ---------------------------------------------------------------- precedence and origin


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "electionTimeoutMs=700\n")
    env = {"DLEDGER_ELECTION_TIMEOUT_MS": "800", "DLEDGER_MAX_INFLIGHT_COUNT": "7"}
    flag = {"electionTimeoutMs": "900ms"}
    assert DLedgerConfig.from_file(path, env={}).election_timeout_ms == 700
    assert DLedgerConfig.from_file(path, env=env).election_timeout_ms == 800
    config = DLedgerConfig.from_file(path, flag, env)
    assert config.election_timeout_ms == 900
    assert config.max_inflight_count == 7
    assert config.origins["election_timeout_ms"].kind is OriginKind.FLAG
    assert (
        config.origins["election_timeout_ms"].describe()
        == f"flag -D electionTimeoutMs (env DLEDGER_ELECTION_TIMEOUT_MS said 800; file said 700, {path}:4)"
    )
    assert config.origins["group"].describe() == f"{path}:1"
    assert config.origins["max_append_bytes"] == Origin(OriginKind.DEFAULT)


def test_the_processes_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLEDGER_DLEGER_SELF_ID", "n2")
    assert DLedgerConfig.from_file(write(tmp_path, GOOD)).self_id == "n2"


def test_problems_name_flags_and_variables(tmp_path: Path) -> None:
    found = problems_of(
        write(tmp_path, GOOD),
        {"electionTimeoutMs": "x", "flushDisk": "1", "listenPort": "1"},
        {"DLEDGER_DLEGER_SELF_ID": "n9", "DLEDGER_GROUP": "a", "DLEDGER_DLEGER_GROUP": "b"},
    )
    assert [problem.split(": ")[0] for problem in found] == [
        "-D flushDisk",
        "environment:DLEDGER_GROUP",
        "-D electionTimeoutMs",
        "environment:DLEDGER_DLEGER_SELF_ID",
    ]


def test_a_bad_value_that_loses_is_still_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "electionTimeoutMs=never\n")
    assert problems_of(path, {"electionTimeoutMs": "900"})[0].startswith(f"{path}:4:19: electionTimeoutMs")


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ("dLegerSelfId", "DLEDGER_DLEGER_SELF_ID"),
        ("peers", "DLEDGER_PEERS"),
        ("group", "DLEDGER_GROUP"),
        ("heartBeatTimeIntervalMs", "DLEDGER_HEART_BEAT_TIME_INTERVAL_MS"),
    ],
)
def test_environment_names(key: str, variable: str) -> None:
    assert environment_name(key) == variable


def test_from_mapping_reads_neither_file_nor_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLEDGER_SELF_ID", "n2")
    config = DLedgerConfig.from_mapping({"group": "g", "selfId": "n0", "peers": PEERS, "maxBatchBytes": "5MiB"})
    assert (config.self_id, config.max_batch_bytes) == ("n0", 5 * 1024**2)


# ---------------------------------------------------------------- the table


def test_no_two_settings_share_a_spelling_or_a_variable() -> None:
    names = [name for setting in SETTINGS for name in setting.names]
    assert len({name.lower() for name in names}) == len(names)
    assert len({environment_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.key)
def test_defaults_are_in_range_documented_and_survive_writing(setting) -> None:
    assert setting.doc.rstrip(")").endswith(".")
    assert explain(setting).startswith(setting.key)
    if setting.required or setting.default in (None, ()):
        return
    assert setting.check(setting.default) is None
    if setting.kind is not Kind.PATH:
        assert setting.parse(setting.format(setting.default)) == setting.default


def test_the_sample_file_is_the_defaults(tmp_path: Path) -> None:
    text = sample_file("g", "n0", PEERS)
    assert DLedgerConfig.from_file(write(tmp_path, text), env={}) == make()
    uncommented = "\n".join(line[1:] if line[:1] == "#" and line[1:2].isalpha() else line for line in text.splitlines())
    assert DLedgerConfig.from_file(write(tmp_path, uncommented), env={}) == make()


def test_the_documentation_page_is_current() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == markdown_page(), "run: dledger config docs > docs/configuration.md"


@given(st.integers(min_value=0, max_value=2**62))
def test_bytes_survive_writing(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == count


@pytest.mark.parametrize(("text", "ms"), [("5", 5), ("5ms", 5), ("2 s", 2000), ("3min", 180_000), ("1h", 3_600_000)])
def test_times(text: str, ms: int) -> None:
    assert parse_milliseconds(text) == ms
