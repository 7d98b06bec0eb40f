"""The quick start must be able to say FAIL: each kind of damage, planted in what it reads back, turns the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from dledger import quickstart
from dledger.cli.exit_codes import ExitCode
from dledger.quickstart import QuickStart, _Copy, _read_lines
from dledger.verdict import Judgement


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["quickstart", *arguments])
    with pytest.raises(SystemExit) as end:
        quickstart.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_line_missing_from_one_nodes_files_is_fail_and_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real run in which one node's files are read with one entry gone."""
    real = quickstart._read_files

    def lossy(directory: Path, commit_index: int) -> _Copy:
        copy = real(directory, commit_index)
        if directory.name == "dledger-n2":
            copy.entries.popitem()
        return copy

    monkeypatch.setattr(quickstart, "_read_files", lossy)
    file = tmp_path / "input.txt"
    file.write_text("".join(f"line {n}\n" for n in range(200)))
    assert run([str(file), "--data-dir", str(tmp_path / "data")], monkeypatch) == ExitCode.VERDICT_FAIL
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith(
        "FAIL  200 acknowledged, 1 lost, 0 duplicated, 0 reordered; 3 of 3 "
    )
    assert "data kept in" in captured.err
    assert list((tmp_path / "data").iterdir())


LINES = [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("acknowledged", "judgement", "digests", "verdict"),
    [
        (
            {0: 1, 1: 2, 2: 3},
            Judgement(),
            "xxx",
            "PASS  3 acknowledged, 0 lost, 0 duplicated, 0 reordered; 3 of 3 logs",
        ),
        ({0: 1, 1: 2, 2: 3}, Judgement(lost={1}), "xxx", "FAIL  3 acknowledged, 1 lost"),
        ({0: 1, 1: 2, 2: 3}, Judgement(duplicated={1, 2}), "xxx", "FAIL  3 acknowledged, 0 lost, 2 duplicated"),
        (
            {0: 1, 1: 2, 2: 3},
            Judgement(reordered={1}),
            "xxx",
            "FAIL  3 acknowledged, 0 lost, 0 duplicated, 1 reordered",
        ),
        (
            {0: 1, 1: 2, 2: 3},
            Judgement(),
            "xyx",
            "FAIL  3 acknowledged, 0 lost, 0 duplicated, 0 reordered; 2 of 3 logs",
        ),
        ({0: 1, 1: 2, 2: 3}, Judgement(), "xx", "FAIL  3 acknowledged, 0 lost, 0 duplicated, 0 reordered; 2 of 3 logs"),
        ({0: 1, 1: 2}, Judgement(), "xxx", "FAIL  2 acknowledged"),
        ({}, Judgement(), "xxx", "FAIL  0 acknowledged"),
    ],
    ids=["clean", "lost", "duplicated", "reordered", "different", "unreadable", "unacknowledged", "nothing"],
)
def test_the_verdict(
    acknowledged, judgement, digests, verdict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = QuickStart(LINES, tmp_path, acknowledged=acknowledged)
    copies = {f"n{number}": _Copy({}, digest) for number, digest in enumerate(digests)}
    assert started._verdict(judgement, copies, 3) is verdict.startswith("PASS")
    assert capsys.readouterr().out.startswith(verdict)


def test_the_sample_text_is_some_thousand_lines_with_equal_ones() -> None:
    lines = _read_lines(None)
    assert 2000 <= len(lines) <= 5000
    assert len(set(lines)) < len(lines)


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", []), (b"\n", [b""]), (b"a\nb", [b"a", b"b"]), (b"a\r\n", [b"a\r"])]
)
def test_lines_of_a_file(content: bytes, lines: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    assert _read_lines(tmp_path / "f") == lines


@pytest.mark.parametrize("name", ["empty", "missing", "folder"])
def test_files_that_cannot_be_appended(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    assert run([str(tmp_path / name), "--data-dir", str(tmp_path / "data")], monkeypatch) == ExitCode.FAILED
    assert str(tmp_path / name) in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
