"""The policy document: YAML, strictly read. Pure. docs/POLICY.md is its manual."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, Final, TypeVar

import yaml

from services.core.addresses import Address, parse_address
from services.core.amounts import format_account, parse_account, parse_chain_id, parse_wei
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError, refuse
from services.signer.policy import Policy
from services.signer.rules import (
    MINUTES_A_DAY,
    NATIVE,
    ApprovalRule,
    Approver,
    Asset,
    AssetRule,
    Hours,
    Lists,
    Rules,
    Window,
)

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 1 << 20
MAX_VERSION = 2**31 - 1
MAX_NAME = 128
MAX_WINDOWS = 8  # of one asset
MAX_WINDOW_S = 366 * 86_400
MAX_APPROVALS = 16
MAX_APPROVERS = 64
MAX_VALID_S = 31 * 86_400
CHANGE_APPROVALS = 2  # of a new version
_ANY: Final = "any"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SELECTOR = re.compile(r"0x[0-9a-fA-F]{8}")
_FUNCTION = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\([A-Za-z0-9_,()\[\]]*\)")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_ASSET = re.compile(r"native|erc20:(0x[0-9a-fA-F]{40})")
_OF_ACCOUNT = {"destinations", "selectors", "contract_creation", "hours", "assets"}


def parse_policy(document: bytes) -> Policy:
    """The policy of a YAML document.

    Raises:
        WalletError: INVALID_REQUEST; `field` is the path of what breaks its rule, unknown fields included.
    """
    root = _object(_load(document), "policy", {"version", "name", "rules", "accounts", "changes"})
    for name in ("version", "name", "rules"):
        if name not in root:
            refuse(f"policy.{name}", "is present")
    rules = _object(root["rules"], "rules", _OF_ACCOUNT | {"chains", "limits"})
    chains = _object(rules.get("chains", {}), "rules.chains", {"allow"})
    limits = _object(rules.get("limits", {}), "rules.limits", {"per_transfer_wei", "per_chain_wei", "fee_wei"})
    # What has to be there in general, so that it is said of every account.
    general = _rules({"destinations": {}, "selectors": {}, "contract_creation": "deny"} | rules, "rules.", "", None)
    accounts = _accounts(root.get("accounts", {}))
    changes = _object(root.get("changes", {}), "changes", {"approvers"})
    change_approvers = _approvers(changes, "changes", CHANGE_APPROVALS)
    return Policy(
        version=_whole(root["version"], "policy.version", 1, MAX_VERSION),
        name=_name(root["name"], "policy.name"),
        document=document,
        sha256=sha256(document).digest(),
        chains=frozenset(_items(chains.get("allow", []), "rules.chains.allow", _read(parse_chain_id))),
        limit_wei=_amount(limits, "per_transfer_wei", "rules.limits") if "per_transfer_wei" in limits else None,
        limits_by_chain_wei=_by_name(
            limits.get("per_chain_wei", {}), "rules.limits.per_chain_wei", _read(parse_chain_id), _read(parse_wei)
        ),
        fee_wei=_amount(limits, "fee_wei", "rules.limits") if "fee_wei" in limits else None,
        general=general,
        accounts=accounts,
        change_approvers=change_approvers,
        approver_keys=_keys([general, *accounts.values()], change_approvers),
    )


def _keys(everything: Iterable[Rules], change_approvers: Iterable[Approver]) -> dict[str, str]:
    rules = [rule.approval for one in everything for rule in (one.assets or {}).values() if rule.approval is not None]
    approvers = [*change_approvers, *(one for rule in rules for one in rule.approvers)]
    return {one.name: one.key for one in approvers if one.key is not None}


def _accounts(value: Any) -> dict[tuple[int, Address], Rules]:
    def read(section: Any, path: str) -> Rules:
        chain_id, address = parse_account(path.removeprefix("accounts."), path)
        own = _object(section, path, _OF_ACCOUNT)
        return _rules(own, f"{path}.", f"accounts.{format_account(chain_id, address)}.", chain_id)

    return _by_name(value, "accounts", _read(parse_account), read)


def _rules(section: dict[str, Any], path: str, name: str, chain_id: int | None) -> Rules:
    """`path` is where it stands in the document, `name` what decisions call it; `chain_id` is an account's."""
    assets = section.get("assets")
    return Rules(
        path=name,
        destinations=_lists(section, "destinations", path, name, _read(parse_address)),
        selectors=_lists(section, "selectors", path, name, _selector),
        contract_creation=(
            _switch(section["contract_creation"], f"{path}contract_creation")
            if "contract_creation" in section
            else None
        ),
        hours=tuple(_some(section["hours"], f"{path}hours", _hours)) if "hours" in section else None,
        assets=None if assets is None else _assets(assets, f"{path}assets", f"{name}assets", chain_id),
    )


def _lists(section: dict[str, Any], field: str, path: str, name: str, read: Callable[[Any, str], T]) -> Lists[T] | None:
    if field not in section:
        return None
    lists = _object(section[field], path + field, {"allow", "deny"})
    allow = lists.get("allow", [])
    return Lists(
        path=name + field,
        allow=None if allow == _ANY else frozenset(_items(allow, f"{path}{field}.allow", read)),
        deny=frozenset(_items(lists.get("deny", []), f"{path}{field}.deny", read)),
        states_allow="allow" in lists,
    )


def _assets(value: Any, path: str, name: str, chain_id: int | None) -> dict[Asset, AssetRule]:
    def asset(text: Any, where: str) -> Asset:
        """`native` or `erc20:0x…` of an account's chain; with the chain and a slash before it elsewhere."""
        if chain_id is not None:
            return _asset(chain_id, text, where)
        chain, slash, rest = text.partition("/")
        if not slash:
            refuse(where, "is eip155:N/native or eip155:N/erc20:0x…")
        return _asset(_read(parse_chain_id)(chain, where), rest, where)

    def rule(section: Any, where: str) -> AssetRule:
        named = asset(where.removeprefix(f"{path}."), where)
        return _asset_rule(section, where, f"{name}.{named.path if chain_id is None else named.name}")

    return _by_name(value, path, asset, rule)


def _asset(chain_id: int, text: str, path: str) -> Asset:
    match = _ASSET.fullmatch(text)
    if match is None:
        refuse(path, f"is {NATIVE} or erc20:0x… of its chain")
    return Asset(chain_id, None if match[1] is None else _read(parse_address)(match[1], path))


def _asset_rule(value: Any, path: str, name: str) -> AssetRule:
    rule = _object(value, path, {"per_transfer", "velocity", "approvals"})
    if "per_transfer" not in rule:
        refuse(f"{path}.per_transfer", "is present")
    per_transfer = _amount(rule, "per_transfer", path)
    windows = _some(rule["velocity"], f"{path}.velocity", _window) if "velocity" in rule else []
    if len(windows) > MAX_WINDOWS:
        refuse(f"{path}.velocity", f"has at most {MAX_WINDOWS} windows")
    approval = _approval(rule["approvals"], f"{path}.approvals") if "approvals" in rule else None
    return AssetRule(name, per_transfer, tuple(sorted(windows)), approval)


def _window(value: Any, path: str) -> Window:
    window = _whole_object(value, path, {"window_s", "limit"})
    return Window(_whole(window["window_s"], f"{path}.window_s", 1, MAX_WINDOW_S), _amount(window, "limit", path))


def _approval(value: Any, path: str) -> ApprovalRule:
    rule = _object(value, path, {"above", "count", "valid_s", "approvers"})
    for field in ("above", "count", "valid_s"):
        if field not in rule:
            refuse(f"{path}.{field}", "is present")
    count = _whole(rule["count"], f"{path}.count", 1, MAX_APPROVALS)
    approvers = _approvers(rule, path, count)
    valid_s = _whole(rule["valid_s"], f"{path}.valid_s", 1, MAX_VALID_S)
    return ApprovalRule(_amount(rule, "above", path), count, valid_s, approvers)


def _approvers(section: dict[str, Any], path: str, count: int) -> tuple[Approver, ...]:
    if "approvers" not in section:
        return ()
    approvers = _some(section["approvers"], f"{path}.approvers", _approver)
    if len({one.name for one in approvers}) != len(approvers) or len(approvers) > MAX_APPROVERS:
        refuse(f"{path}.approvers", f"has at most {MAX_APPROVERS} names, each once")
    if len(approvers) < count:
        refuse(f"{path}.approvers", f"has the {count} names that are asked for")
    return tuple(sorted(approvers, key=lambda one: one.name))


def _approver(value: Any, path: str) -> Approver:
    """A name, or a name with the fingerprint of the key that signs in it."""
    if type(value) is not dict:
        return Approver(_name(value, path))
    approver = _whole_object(value, path, {"name", "key"})
    if type(approver["key"]) is not str or not _FINGERPRINT.fullmatch(approver["key"]):
        refuse(f"{path}.key", "is a client key's fingerprint, sha256: and 64 hex digits")
    return Approver(_name(approver["name"], f"{path}.name"), approver["key"])


def _hours(value: Any, path: str) -> Hours:
    span = _object(value, path, {"days", "from", "to"})
    for field in ("from", "to"):
        if field not in span:
            refuse(f"{path}.{field}", "is present")
    days = _some(span["days"], f"{path}.days", _day) if "days" in span else range(len(_DAYS))
    from_minute, to_minute = _minute(span["from"], f"{path}.from"), _minute(span["to"], f"{path}.to")
    if from_minute >= to_minute:
        refuse(f"{path}.to", "is after `from`: a night is two spans")
    return Hours(frozenset(days), from_minute, to_minute)


def _day(value: Any, path: str) -> int:
    if value not in _DAYS:
        refuse(path, f"is one of {', '.join(_DAYS)}")
    return _DAYS.index(value)


def _minute(value: Any, path: str) -> int:
    match = _CLOCK.fullmatch(value) if type(value) is str else None
    if match is None:
        refuse(path, "is a time HH:MM, UTC, up to 24:00")
    return MINUTES_A_DAY if match[1] is None else int(match[1]) * 60 + int(match[2])


class _TextLoader(yaml.BaseLoader):
    """Every scalar is text, so that 0x1f stays an address and `no` a word; no member twice, no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            refuse("policy", "has no YAML aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        if len(names) != len(node.value):
            refuse("policy", "has text as names of fields")
        if len(set(names)) != len(names):
            refuse(next(name for name in names if names.count(name) > 1), "is there once")
        return super().construct_mapping(node, deep)


def _load(document: bytes) -> Any:
    if len(document) > MAX_DOCUMENT_BYTES:
        refuse("policy", f"has at most {MAX_DOCUMENT_BYTES} bytes")
    try:
        return yaml.load(document.decode(), Loader=_TextLoader)  # noqa: S506 - a BaseLoader makes text only
    except UnicodeDecodeError:
        refuse("policy", "is UTF-8")
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        refuse("policy", f"is one YAML document: {error}")


def _object(value: Any, path: str, fields: set[str]) -> dict[str, Any]:
    if type(value) is not dict:
        refuse(path, "is an object")
    for name in value:
        if name not in fields:
            refuse(f"{path}.{name}", f"is one of {', '.join(sorted(fields))}")
    return value


def _whole_object(value: Any, path: str, fields: set[str]) -> dict[str, Any]:
    found = _object(value, path, fields)
    for name in sorted(fields - found.keys()):
        refuse(f"{path}.{name}", "is present")
    return found


def _by_name(
    value: Any, path: str, read_name: Callable[[Any, str], Any], read: Callable[[Any, str], T]
) -> dict[Any, T]:
    """An object whose names mean something; no two may mean the same."""
    if type(value) is not dict:
        refuse(path, "is an object")
    found: dict[Any, T] = {}
    for text, section in value.items():
        where = f"{path}.{text}"
        name = read_name(text, where)
        if name in found:
            refuse(where, "is there once, however it is written")
        found[name] = read(section, where)
    return found


def _whole(value: Any, path: str, low: int, high: int) -> int:
    if type(value) is not str or not value.isascii() or not value.isdecimal() or len(value) > 10:
        refuse(path, "is a whole number")
    if not low <= int(value) <= high:
        refuse(path, f"is {low} … {high}")
    return int(value)


def _amount(section: dict[str, Any], field: str, path: str) -> int:
    return _read(parse_wei)(section[field], f"{path}.{field}")


def _name(value: Any, path: str) -> str:
    if type(value) is not str or not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        refuse(path, f"is 1 to {MAX_NAME} printable characters")
    return value


def _switch(value: Any, path: str) -> bool:
    if value not in ("allow", "deny"):
        refuse(path, "is allow or deny")
    return bool(value == "allow")


def _items(value: Any, path: str, read: Callable[[Any, str], T]) -> list[T]:
    if type(value) is not list:
        refuse(path, "is a list")
    return [read(item, f"{path}[{place}]") for place, item in enumerate(value)]


def _some(value: Any, path: str, read: Callable[[Any, str], T]) -> list[T]:
    items = _items(value, path, read)
    if not items:
        refuse(path, "has at least one item")
    return items


def _read(parse: Callable[[object, str], T]) -> Callable[[Any, str], T]:
    """`parse` with its own reason turned into the one of a document."""

    def read(value: Any, path: str) -> T:
        try:
            return parse(value, path)
        except WalletError as error:
            rule = error.details.get("rule", error.message)
            raise WalletError(Reason.INVALID_REQUEST, f"{path}: {error.message}", field=path, rule=str(rule)) from error

    return read


def _selector(value: Any, path: str) -> bytes:
    """Four bytes, written as 0x and 8 digits, or as the function's signature such as transfer(address,uint256)."""
    if type(value) is str and _SELECTOR.fullmatch(value):
        return bytes.fromhex(value[2:])
    if type(value) is not str or not _FUNCTION.fullmatch(value):
        refuse(path, "is 0x and 8 hex digits, or a signature like transfer(address,uint256)")
    return keccak256(value.encode())[:4]
