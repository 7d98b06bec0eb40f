"""``dledger unsafe-new-group``: what is left to do when a majority of a group is lost for good."""

from __future__ import annotations

import click

from dledger.cli.exit_codes import ExitCode
from dledger.cli.log_command import node_folder
from dledger.cli.table import format_count
from dledger.config import SETTINGS

__all__ = ["new_group"]


@click.command("unsafe-new-group")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.option("--group", required=True, metavar="NAME", help="A name that no node of the old group has ever had.")
@click.option("--yes", is_flag=True, help="Do it. Without it the folder is only looked at.")
def new_group(directory: str, group: str, yes: bool) -> int:
    """Give the log of the stopped node in DIR to a new group, whose nodes are the survivors.

    For when a majority of a group is lost for good, and for nothing else. Entries that the lost nodes had acknowledged
    and this one never got are gone, and entries that were never acknowledged may stand in the log. Read "Restoring
    quorum by hand" in docs/operations.md first. Of several survivors each gets the same new name.
    """
    from dledger.storage.filesystem import RealFileSystem
    from dledger.storage.new_group import give_to_group

    setting = next(setting for setting in SETTINGS if setting.field == "group")
    problem = setting.check(group)
    if problem:
        raise click.BadParameter(problem, param_hint="--group")
    folder = node_folder(directory)
    found = give_to_group(RealFileSystem(), folder, group, change=yes)
    report = found.report
    click.echo(
        f"{found.node_id} of group {found.old_group}: {format_count(report.entry_count)} entries, last index "
        f"{report.last_index} of term {report.last_term}, chain CRC {report.chain_crc:08x}, all valid"
    )
    click.echo(f"whatever group {found.old_group} acknowledged beyond index {report.last_index} is lost", err=True)
    if not yes:
        click.echo("nothing was changed: add --yes to do it", err=True)
        return ExitCode.DONE
    click.echo(f"{folder} belongs to group {group} now")
    click.echo(
        f"next: set dLegerGroup={group} and dLegerPeers to the survivors in each survivor's file, and start them",
        err=True,
    )
    return ExitCode.DONE
