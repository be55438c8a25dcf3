"""Options that nearly every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Url = Annotated[str | None, typer.Option(envvar="GOLDENLINK_URL", help="Gateway; by default that of 'make up'.")]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="GOLDENLINK_TOKEN_FILE", help="File with the bearer token (operator).")
]
ApproverTokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar="GOLDENLINK_TOKEN_FILE", help="File with an approver's token.")
]
