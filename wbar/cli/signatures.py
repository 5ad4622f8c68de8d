"""`wbar signature` and `wbar verify`: what the operator of a service signed, and whether a file is it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wbar.cli.completion import JobId
from wbar.cli.names import job_of
from wbar.cli.output import FAILED, answer, connected, end, need, note, with_json
from wbar.errors import NotVerified

app = typer.Typer()


@app.command()
@with_json
def signature(
    job: JobId,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to write it.")] = Path("signature.json"),
) -> None:
    """Download the signature of a job's weights and card."""
    with connected() as client:
        client.jobs.download_signature(job_of(client, job), output)
    answer({"path": str(output)}, str(output))


@app.command()
@with_json
def verify(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE …", help="Files of a result, or a folder with all of them.")
    ],
    signature: Annotated[Path, typer.Option(help="As `wbar signature` wrote it.")],
    public_key: Annotated[Path, typer.Option(help="The operator's public key, PEM.")],
) -> None:
    """Verify that files are what the operator of a service signed; offline. Exit 1 where one is not."""
    need("signing", "model_signing", "OpenSSL")
    from wbar.verifying import verify as verified

    try:
        found = verified(files, signature, public_key)
    except NotVerified as error:
        end(error, FAILED)
    note(f"signed with the key of {public_key}")
    lines = "\n".join(f"{one.path}: signed as {one.name}" for one in found)
    answer({"verified": [asdict(one) for one in found]}, lines)
