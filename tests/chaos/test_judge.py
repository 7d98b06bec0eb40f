"""What makes a run fail, one point at a time; and that a history judged again gives the same verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dledger.chaos.judge import judge_record, percentile
from dledger.chaos.record import Election, Record, embed
from dledger.checker import Kind
from dledger.cli.exit_codes import ExitCode
from dledger.cli.main import _run
from dledger.errors import UnexpectedArgumentError
from tests.chaos.records import good_record


def test_a_good_run_passes_and_says_so_in_its_first_line() -> None:
    record = good_record()
    judgement = judge_record(record)
    assert judgement.ok
    lines = judgement.lines(record)
    assert lines[0] == (
        "PASS  57 acknowledged, 0 lost, 0 duplicated, 0 reordered; linearizable (append log, real-time order), "
        "3 of 3 logs identical"
    )
    assert (
        lines[1].strip().startswith("2 unknown: 1 found in the log, 1 absent, both allowed; 1 refused, 0 of them found")
    )
    assert "median 0.42 s, p99 0.42 s, worst 0.42 s over 1 leader losses   fsync on" in lines[2]


def lose(record: Record) -> None:
    record.log[25] = None


def double(record: Record) -> None:
    record.log[-1] = "v3"


def phantom(record: Record) -> None:
    record.log[-1] = "nobody's"


def refused_appears(record: Record) -> None:
    record.log[-1] = "v20"


def two_leaders(record: Record) -> None:
    record.elections.append(Election(6.0, "n2", 2))


def two_leaders_seen(record: Record) -> None:
    next(s for s in record.samples if s.node == "n2" and s.at > 6).state = "leader"


def commit_back(record: Record) -> None:
    record.samples[-1].commit_index = 0


def term_back(record: Record) -> None:
    record.samples[-1].term = 1


def differing_logs(record: Record) -> None:
    record.digests["n2"] = "other"


def no_recovery(record: Record) -> None:
    record.meta["error"] = "the group did not recover: no leader after 60 s"


def died(record: Record) -> None:
    record.meta["problems"] = ["n1 ended by itself (exit code 1): why"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose, "lost: append 'v27'"),
        (double, "duplicated: append 'v3'"),
        (phantom, "phantom: index"),
        (refused_appears, "definite failure appeared: append 'v20'"),
        (two_leaders, "term 2 had 2 leaders: n1, n2"),
        (two_leaders_seen, "term 2 had 2 leaders: n1, n2"),
        (commit_back, "n2's commit index went back from 49 to 0"),
        (term_back, "n2's term went back from 2 to 1"),
        (differing_logs, "only 2 of 3 logs are identical"),
        (no_recovery, "did not recover"),
        (died, "n1 ended by itself"),
    ],
)
def test_each_fault_of_a_log_fails_the_run(spoil: Callable[[Record], None], words: str, tmp_path: Path, capsys) -> None:
    record = good_record()
    spoil(record)
    judgement = judge_record(record)
    assert not judgement.ok
    text = "\n".join(judgement.lines(record))
    assert text.startswith("FAIL")
    assert words in text
    # The same from the file, by the command, with its exit code.
    path = tmp_path / "history.jsonl"
    record.save(path)
    assert _run(["report", str(path)]) == ExitCode.VERDICT_FAIL
    assert words in capsys.readouterr().out


def test_the_fault_that_was_active_is_named_beside_the_offence() -> None:
    record = good_record()
    record.log[25] = None  # its append was called at about 4.1 s, while n0 was down
    lines = judge_record(record).lines(record)
    at = next(number for number, line in enumerate(lines) if "lost: append 'v27'" in line)
    assert lines[at + 1].strip() == "fault active then: kill -9 n0 (leader)"


def test_at_most_three_offences_are_shown_and_all_are_counted() -> None:
    record = good_record()
    record.log = [None] * len(record.log)
    judgement = judge_record(record)
    assert judgement.lost == 57
    text = "\n".join(judgement.lines(record))
    assert text.count("  lost: ") == 3
    assert "violations in all" in text


def test_nothing_acknowledged_is_no_pass() -> None:
    record = good_record()
    record.history.outcomes[:] = bytes(len(record.history.outcomes))
    assert "nothing was acknowledged" in "\n".join(judge_record(record).lines(record))


def test_a_group_of_others_has_no_files_to_compare() -> None:
    record = good_record()
    record.digests = {}
    judgement = judge_record(record)
    assert judgement.ok
    assert "logs of others not compared" in judgement.lines(record)[0]


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz", "run.html"])
def test_a_record_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    record = good_record()
    path = tmp_path / name
    if name.endswith(".html"):
        path.write_text(f"<!DOCTYPE html>\n<body>{embed(record)}</body>", encoding="utf-8")
    else:
        record.save(path)
    again = Record.load(path)
    for field in ("meta", "faults", "events", "samples", "elections", "losses", "log", "digests"):
        assert getattr(again, field) == getattr(record, field), field
    assert again.history.values == record.history.values
    assert again.history.rets == record.history.rets
    assert judge_record(again).summary() == judge_record(record).summary()
    assert _run(["report", str(path)]) == ExitCode.DONE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no meta line"),
        ('["meta", {}]\n["what", 1]', "line 2: unknown row 'what'"),
        ("hello", "line 1"),
        ("<!DOCTYPE html><p>nothing", "no history in it"),
        ('["meta", {}]\n["a", 1]', "line 1 of the history"),
    ],
)
def test_what_is_no_history_is_refused_with_the_reason(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UnexpectedArgumentError, match=words):
        Record.load(path)
    assert _run(["report", str(path)]) == ExitCode.FAILED


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnexpectedArgumentError, match="No such file"):
        Record.load(tmp_path / "none")


def test_percentiles() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50, 99, 100)
    assert percentile([3.0], 99) == 3.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_lost_and_duplicated_are_counted_apart() -> None:
    record = good_record()
    record.log[25] = "v3"
    verdict = judge_record(record).verdict
    assert verdict.count(Kind.LOST) == 1
    assert verdict.count(Kind.DUPLICATED) == 1
