"""The command line: a thin layer over the client, one module per group of commands.

Exit codes: 0 done, 1 the job failed, 2 usage, 3 the service refused, 4 unreachable, 130 Ctrl-C (a job that was followed goes
on). With `--json` a command prints one JSON value on stdout, or a problem as JSON on stderr and nothing on stdout.

The other rooms add their commands through the entry-point group `wbar.commands`; none of them is imported here, so that
`wbar --help` starts fast and a plain installation is enough for a user.
"""

import importlib
from importlib.metadata import entry_points
from typing import Annotated

import typer

from wbar import __version__
from wbar.cli import following, jobs, keys, merges, signatures, studies, submitting, uploads, webhooks
from wbar.cli.output import (
    DETACHED,
    FAILED,
    REFUSED,
    UNREACHABLE,
    USAGE,
    answer,
    end,
    need,
    print_json,
    wants_json,
    with_json,
)
from wbar.cli.sections import Sections
from wbar.errors import Unreachable, WbarError

__all__ = [
    "DETACHED",
    "FAILED",
    "REFUSED",
    "UNREACHABLE",
    "USAGE",
    "answer",
    "app",
    "end",
    "main",
    "need",
    "print_json",
    "wants_json",
    "with_json",
]

app = typer.Typer(cls=Sections, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
for _group in (uploads.app, submitting.app, jobs.app, following.app, signatures.app):
    app.registered_commands += _group.registered_commands
app.add_typer(uploads.checkpoints_app, name="checkpoints")
app.add_typer(uploads.datasets_app, name="datasets")
app.add_typer(keys.app, name="keys")
app.add_typer(merges.app, name="merges")
app.add_typer(studies.app, name="study")
app.add_typer(webhooks.app, name="webhooks")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False,
) -> None:
    """wbar: fine-tune a trained image network with cyclic rates, download the mean of the weights it visited.

    Begin with `wbar demo`, which shows in a minute or two what is won, or with `wbar up`, which runs the service here and
    prints a link to its dashboard. Then, in another terminal:

    \b
      wbar upload model.pth               prints ckpt_…
      wbar datasets add folder/           prints ds_…   (folder/train/<class>/*.jpg, and val/ likewise)
      wbar submit --checkpoint ckpt_… --dataset ds_… --method auto --wait
      wbar download job_…
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the `wbar` command."""
    for entry in entry_points(group="wbar.commands"):
        app.registered_commands += entry.load().registered_commands
    app.add_typer(importlib.import_module("wbar.exports.commands").app, name="export")  # here: it imports this module
    try:
        app(prog_name="wbar")
    except Unreachable as error:
        end(error, UNREACHABLE)
    except WbarError as error:
        end(error, REFUSED)
    except (ValueError, TimeoutError) as error:
        end(error, USAGE)
