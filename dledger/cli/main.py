"""Entry point. What needs no command (help, version) is answered here, before click is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dledger.cli.exit_codes import ExitCode
from dledger.cli.verbs import COMMANDS, help_text
from dledger.grpc_engine import prefer_polling
from dledger.version import VERSION

__all__ = ["COMMANDS", "main"]


def _run(arguments: Sequence[str] | None) -> int:
    """Run a command line (None: the process's own); returns the exit code of every ending that has one."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    answer = None if "_DLEDGER_COMPLETE" in os.environ else _quick_answer(given)
    if answer is not None:
        print(answer)
        return ExitCode.DONE
    from dledger.cli.root import run_command

    return run_command(given)


def _quick_answer(arguments: list[str]) -> str | None:
    """Return the text of ``--help`` or ``--version``; None: the command line asks for something else."""
    if arguments == ["--version"]:
        return f"dledger {VERSION}"
    if arguments in (["--help"], ["-h"]):
        import shutil

        return help_text(shutil.get_terminal_size().columns)
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``dledger`` command and leave the process with its exit code."""
    prefer_polling()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC reports every peer that stops on standard error
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has had enough (``| head``). Nothing may be written at shutdown either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.FAILED
    sys.exit(int(code))


if __name__ == "__main__":
    main()
