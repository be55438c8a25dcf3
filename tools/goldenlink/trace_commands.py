"""`goldenlink trace`: a stored trace, or one that is rebuilt from the log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tools.goldenlink.client import connect
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.options import Json, TokenFile, Url
from tools.goldenlink.output import console, print_json
from tools.goldenlink.rebuilding import rebuilt_document, steps_of_bundle, steps_of_link
from tools.goldenlink.waterfall import read_spans, waterfall


class _ShowByDefault(TyperGroup):
    """`trace ID` is `trace show ID`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = next((word for word in args if not word.startswith("-")), None)
        if named is not None and named not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


trace_app = typer.Typer(cls=_ShowByDefault, no_args_is_help=True, help="Traces: who did what, and how long it took.")


@trace_app.command("show")
def trace_show(
    trace_or_transfer: Annotated[str, typer.Argument(help="Trace id (32 hex digits) or transfer id.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """A stored trace as a waterfall. The default: 'trace ID' is 'trace show ID'."""
    client = connect(url, token_file)
    trace_id = trace_or_transfer
    if len(trace_id) != 32 or not set(trace_id) <= set("0123456789abcdef"):
        trace_id = client.get(f"/v1/transfers/{trace_or_transfer}")["trace_id"]
    _print(client.get(f"/v1/traces/{trace_id}"), json)


@trace_app.command("rebuild")
def trace_rebuild(
    link_id: Annotated[str | None, typer.Argument(help="Transfer id, or another link's.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Read this bundle instead; needs no gateway.")] = None,
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """The essential spans of a link, rebuilt from its entries in the evidence log alone."""
    if (link_id is None) is (bundle is None):
        raise Failure(Exit.USAGE, "name a link, or a bundle: one of the two")
    if bundle is not None:
        steps = steps_of_bundle(bundle)
    else:
        steps = steps_of_link(connect(url, token_file).get(f"/v1/links/{link_id}"))
    _print(rebuilt_document(steps), json)
    if not json:
        console.print("rebuilt from the log: what no entry names is not in it", style="dim")


def _print(document: dict[str, Any], json: bool) -> None:
    print_json(document) if json else console.print(waterfall(read_spans(document)))
