"""The signing policy: a YAML document, strictly read, and its decision about one transaction. Pure.

What nothing allows is denied. A decision names the rules that made it: all that allowed, or the first that denied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

import yaml

from services.core.addresses import Address, parse_address
from services.core.amounts import format_chain_id, parse_chain_id, parse_wei
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError, refuse

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 1 << 20
MAX_VERSION = 2**31 - 1
MAX_NAME = 128
_ANY: Final = "any"
_SELECTOR = re.compile(r"0x[0-9a-fA-F]{8}")
_FUNCTION = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\([A-Za-z0-9_,()\[\]]*\)")

# ERC-20, EIP-20 "Methods": call data whose receiver or spender is an argument (its place in 32-byte words).
_ARGUMENT_OF_RECEIVER = {
    bytes.fromhex("a9059cbb"): 0,  # transfer(address,uint256)
    bytes.fromhex("095ea7b3"): 0,  # approve(address,uint256)
    bytes.fromhex("23b872dd"): 1,  # transferFrom(address,address,uint256)
}


class Terms(NamedTuple):
    """What a policy looks at."""

    chain_id: int
    to: Address | None  # None creates a contract
    value_wei: int
    data: bytes


class Decision(NamedTuple):
    allowed: bool
    rules: tuple[str, ...]

    @property
    def word(self) -> str:
        """As intent bodies carry it."""
        return "allow" if self.allowed else "deny"


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of the policy. An allow set of None means "any"."""

    version: int
    name: str
    document: bytes
    sha256: bytes  # of the document
    chains: frozenset[int]
    allowed_destinations: frozenset[Address] | None
    denied_destinations: frozenset[Address]
    limit_wei: int | None  # per transfer, for chains without a limit of their own
    limits_by_chain_wei: dict[int, int]
    allowed_selectors: frozenset[bytes] | None
    denied_selectors: frozenset[bytes]
    contract_creation: bool

    def decide(self, terms: Terms) -> Decision:
        """Every rule that applies must allow; the first one that does not is the answer."""
        allowed: list[str] = []
        for rule in (self._chain, self._limit, self._destination, self._call):
            allows, texts = rule(terms)
            if not allows:
                return Decision(False, texts)
            allowed.extend(texts)
        return Decision(True, tuple(allowed))

    def _chain(self, terms: Terms) -> tuple[bool, tuple[str, ...]]:
        chain = format_chain_id(terms.chain_id)
        if terms.chain_id in self.chains:
            return True, (f"chains.allow: {chain}",)
        return False, (f"chains.allow: {chain} is not listed",)

    def _limit(self, terms: Terms) -> tuple[bool, tuple[str, ...]]:
        limit_wei = self.limits_by_chain_wei.get(terms.chain_id)
        name = f"limits.per_chain_wei.{format_chain_id(terms.chain_id)}"
        if limit_wei is None:
            limit_wei, name = self.limit_wei, "limits.per_transfer_wei"
        if limit_wei is None:
            return False, (f"{name}: there is no limit, so no value is allowed",)
        if terms.value_wei > limit_wei:
            return False, (f"{name}: {terms.value_wei} is above {limit_wei}",)
        return True, (f"{name}: at most {limit_wei}",)

    def _destination(self, terms: Terms) -> tuple[bool, tuple[str, ...]]:
        if terms.to is None:
            if self.contract_creation:
                return True, ("contract_creation: allow",)
            return False, ("contract_creation: deny",)
        for address in (terms.to, _token_receiver(terms.data)):
            if address in self.denied_destinations:
                return False, (f"destinations.deny: 0x{address.hex()}",)
        if self.allowed_destinations is None:
            return True, ("destinations.allow: any",)
        if terms.to in self.allowed_destinations:
            return True, (f"destinations.allow: 0x{terms.to.hex()}",)
        return False, (f"destinations.allow: 0x{terms.to.hex()} is not listed",)

    def _call(self, terms: Terms) -> tuple[bool, tuple[str, ...]]:
        if terms.to is None or not terms.data:
            return True, ()
        selector = terms.data[:4]
        if selector in self.denied_selectors:
            return False, (f"selectors.deny: 0x{selector.hex()}",)
        if self.allowed_selectors is None:
            return True, ("selectors.allow: any",)
        if selector in self.allowed_selectors:
            return True, (f"selectors.allow: 0x{selector.hex()}",)
        return False, (f"selectors.allow: 0x{selector.hex()} is not listed",)


def _token_receiver(data: bytes) -> Address | None:
    """Who an ERC-20 call pays or empowers: a denied address is denied tokens too."""
    place = _ARGUMENT_OF_RECEIVER.get(data[:4])
    if place is None:
        return None
    word = data[4 + 32 * place : 36 + 32 * place]
    return Address(word[12:]) if len(word) == 32 else None


def parse_policy(document: bytes) -> Policy:
    """The policy of a YAML document.

    Raises:
        WalletError: INVALID_REQUEST; `field` is the path of what breaks its rule, unknown fields included.
    """
    root = _object(_load(document), "policy", {"version", "name", "rules"})
    for name in ("version", "name", "rules"):
        if name not in root:
            refuse(f"policy.{name}", "is present")
    rules = _object(root["rules"], "rules", {"chains", "destinations", "limits", "selectors", "contract_creation"})
    chains = _object(rules.get("chains", {}), "rules.chains", {"allow"})
    destinations = _object(rules.get("destinations", {}), "rules.destinations", {"allow", "deny"})
    limits = _object(rules.get("limits", {}), "rules.limits", {"per_transfer_wei", "per_chain_wei"})
    selectors = _object(rules.get("selectors", {}), "rules.selectors", {"allow", "deny"})
    per_chain = limits.get("per_chain_wei", {})
    if type(per_chain) is not dict:
        refuse("rules.limits.per_chain_wei", "is an object of limits by chain")
    return Policy(
        version=_version(root["version"]),
        name=_name(root["name"]),
        document=document,
        sha256=sha256(document).digest(),
        chains=frozenset(_items(chains.get("allow", []), "rules.chains.allow", _read(parse_chain_id))),
        allowed_destinations=_allowed(destinations, "rules.destinations.allow", _read(parse_address)),
        denied_destinations=frozenset(
            _items(destinations.get("deny", []), "rules.destinations.deny", _read(parse_address))
        ),
        limit_wei=(
            _read(parse_wei)(limits["per_transfer_wei"], "rules.limits.per_transfer_wei")
            if "per_transfer_wei" in limits
            else None
        ),
        limits_by_chain_wei={
            _read(parse_chain_id)(chain, "rules.limits.per_chain_wei"): _read(parse_wei)(
                limit, f"rules.limits.per_chain_wei.{chain}"
            )
            for chain, limit in per_chain.items()
        },
        allowed_selectors=_allowed(selectors, "rules.selectors.allow", _selector),
        denied_selectors=frozenset(_items(selectors.get("deny", []), "rules.selectors.deny", _selector)),
        contract_creation=_switch(rules.get("contract_creation", "deny"), "rules.contract_creation"),
    )


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
        for name in names:
            if names.count(name) > 1:
                refuse(name, "is there once")
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


def _version(value: Any) -> int:
    if type(value) is not str or not value.isascii() or not value.isdecimal() or len(value) > 10:
        refuse("policy.version", "is a whole number")
    if not 1 <= int(value) <= MAX_VERSION:
        refuse("policy.version", f"is 1 … {MAX_VERSION}")
    return int(value)


def _name(value: Any) -> str:
    if type(value) is not str or not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        refuse("policy.name", f"is 1 to {MAX_NAME} printable characters")
    return value


def _switch(value: Any, path: str) -> bool:
    if value not in ("allow", "deny"):
        refuse(path, "is allow or deny")
    return bool(value == "allow")


def _items(value: Any, path: str, read: Callable[[Any, str], T]) -> list[T]:
    if type(value) is not list:
        refuse(path, "is a list")
    return [read(item, f"{path}[{place}]") for place, item in enumerate(value)]


def _allowed(rule: dict[str, Any], path: str, read: Callable[[Any, str], T]) -> frozenset[T] | None:
    value = rule.get("allow", [])
    return None if value == _ANY else frozenset(_items(value, path, read))


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
