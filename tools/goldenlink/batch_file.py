"""Transfers from a CSV file: one a line, the columns named in the first."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tools.goldenlink.amounts import parse_value
from tools.goldenlink.exits import Exit, Failure

COLUMNS = ("to", "value", "token", "amount", "data", "gas_limit", "account")


def read_batch(path: Path, account_id: str | None) -> list[dict[str, Any]]:
    """Request bodies of the file's lines; `account_id` is the sender of those that name none.

    Columns: to, value (wei, or with a unit), token and amount (ERC-20, smallest unit), data, gas_limit, account.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            unknown = set(reader.fieldnames or ()) - set(COLUMNS)
            if unknown:
                raise Failure(
                    Exit.USAGE, f"{path}: unknown column {', '.join(sorted(unknown))}; there are {', '.join(COLUMNS)}"
                )
            transfers = [_transfer(row, account_id, f"{path}:{reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Failure(Exit.USAGE, f"{path}: {error}") from None
    if not transfers:
        raise Failure(Exit.USAGE, f"{path}: no transfers")
    return transfers


def _transfer(row: dict[str, Any], account_id: str | None, place: str) -> dict[str, Any]:
    if None in row or None in row.values():
        raise Failure(Exit.USAGE, f"{place}: not as many fields as columns")
    cells = {name: text.strip() for name, text in row.items() if text.strip()}
    sender = cells.get("account", account_id)
    if sender is None:
        raise Failure(Exit.USAGE, f"{place}: no account, and no --account")
    transfer: dict[str, Any] = {"account_id": sender}
    if "to" in cells:
        transfer["to"] = cells["to"]
    if "value" in cells:
        transfer["value_wei"] = parse_value(cells["value"], f"{place}: value")
    if "token" in cells:
        transfer["erc20"] = {"token": cells["token"], "amount": cells.get("amount", "")}
    for name in ("data", "gas_limit"):
        if name in cells:
            transfer[name] = cells[name]
    return transfer
