"""The spans of a link that its evidence proves, rebuilt from the log alone. Pure: no I/O.

Each entry names the span that wrote it. So a span that no process ever exported is known by its id, by what it did,
and by when: from the first of its entries to the last. What no entry tells (parents, RPCs, token calls) stays unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from services.core.canonical import parse_time
from services.core.entries import Kind, Leaf
from services.core.errors import Reason, WalletError
from services.runtime import attributes as names

AttributeValue = str | int | float | bool

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ACTING = {
    Kind.INTENT: ("signer", "signer.signature"),
    Kind.SIGNATURE: ("signer", "signer.signature"),
    Kind.REQUEST: ("broadcaster", "broadcaster.submission"),
    Kind.RESPONSE: ("broadcaster", "broadcaster.submission"),
    Kind.INCLUSION: ("broadcaster", "broadcaster.inclusion"),
    Kind.REVOCATION: ("broadcaster", "broadcaster.revocation"),
}
_APPROVAL = ("gateway", "gateway.approval")
# Entered by whichever call was current: the names are ours, and no stored span's.
_DENIAL = ("signer", "signer.denial")
_ADMINISTRATIVE = {Kind.POLICY: "signer", Kind.KEY: "keys", Kind.EXPORT: "tracestore", Kind.ARCHIVE: "tracestore"}


@dataclass(frozen=True, slots=True)
class EnteredStep:
    """One entry of a link."""

    index: int  # in the log
    leaf: Leaf
    body: Mapping[str, Any] | None  # None when erased


@dataclass(frozen=True)
class EssentialSpan:
    trace_id: str
    span_id: str
    service: str
    name: str
    has_own_name: bool  # False: the span that wrote these entries has another name
    start_ns: int
    end_ns: int
    error: str | None  # a Reason's name, or "" where the log does not tell it; None: not failed
    attributes: Mapping[str, AttributeValue]


class StoredSpan(NamedTuple):
    """What is compared of a span that tracestore holds."""

    service: str
    name: str
    attributes: Mapping[str, AttributeValue]


class Difference(NamedTuple):
    """`stored` is None where the log's word has no counterpart."""

    span_id: str
    field: str  # span, service, name, or an attribute
    entered: AttributeValue
    stored: AttributeValue | None


def essential_spans(steps: Sequence[EnteredStep]) -> list[EssentialSpan]:
    """One span for each span id that the entries of one link name, in the order of their beginnings.

    Raises:
        WalletError: INVALID_REQUEST when the entries are of different links or traces.
    """
    if len({(step.leaf.link_id, step.leaf.trace_id) for step in steps}) > 1:
        raise WalletError(Reason.INVALID_REQUEST, "the entries are not of one link", field="entries")
    groups: dict[str, list[EnteredStep]] = {}
    for step in sorted(steps, key=lambda one: one.leaf.step):
        groups.setdefault(step.leaf.span_id, []).append(step)
    link = _Link(steps)
    return sorted((_span(group, link) for group in groups.values()), key=lambda span: (span.start_ns, span.span_id))


def differences(essential: Iterable[EssentialSpan], stored: Mapping[str, StoredSpan]) -> list[Difference]:
    """Where the stored spans of a trace, by span id, are not what the log says of them."""
    found: list[Difference] = []
    for span in essential:
        one = stored.get(span.span_id)
        if one is None:
            found.append(Difference(span.span_id, "span", span.name, None))
            continue
        if one.service != span.service:
            found.append(Difference(span.span_id, "service", span.service, one.service))
        if not span.has_own_name:
            continue
        if one.name != span.name:
            found.append(Difference(span.span_id, "name", span.name, one.name))
        for key, value in span.attributes.items():
            if key != names.WALLET_REBUILT and one.attributes.get(key) != value:
                found.append(Difference(span.span_id, key, value, one.attributes.get(key)))
    return found


class _Link:
    """What one entry tells about the spans of others."""

    def __init__(self, steps: Sequence[EnteredStep]) -> None:
        bodies = [(step.leaf.kind, step.body) for step in steps if step.body is not None]
        intents = [body for kind, body in bodies if kind is Kind.INTENT]
        self.chain_id: str | None = intents[0]["chain_id"] if intents else None
        # raw transaction, 0x-hex → its hash.
        self.signed: dict[str, str] = {
            body["raw_tx"]: body["tx_hash"] for kind, body in bodies if kind is Kind.SIGNATURE and body["raw_tx"]
        }
        # block hash → transaction hash, for what is revoked later.
        self.included: dict[str, str] = {
            body["block_hash"]: tx_hash
            for kind, body in bodies
            if kind is Kind.INCLUSION and (tx_hash := self.proven(body)) is not None
        }
        self.latest_intent: dict[int, Mapping[str, Any]] = {}
        latest: Mapping[str, Any] | None = None
        for step in sorted(steps, key=lambda one: one.leaf.step):
            if step.leaf.kind is Kind.INTENT:
                latest = step.body
            if latest is not None:
                self.latest_intent[step.leaf.step] = latest

    def requested(self, body: Mapping[str, Any]) -> str | None:
        """The hash of the transaction that a request sends."""
        raw_tx = json.loads(bytes.fromhex(body["body"][2:]))["params"][0]
        return self.signed.get(raw_tx)

    def proven(self, body: Mapping[str, Any]) -> str | None:
        """The hash of the transaction that an inclusion proves: the last node of the proof holds it."""
        leaf = body["transaction_proof"][-1]
        return next((tx_hash for raw_tx, tx_hash in self.signed.items() if raw_tx[2:] in leaf), None)


def _span(group: Sequence[EnteredStep], link: _Link) -> EssentialSpan:
    first = group[0]
    service, name, has_own_name = _identity(group)
    found: dict[str, AttributeValue | None] = {}
    error: str | None = None
    starts, ends = [_ns(first.leaf.at)], [_ns(group[-1].leaf.at)]
    for step in group:
        body = step.body
        if body is None:
            continue
        match step.leaf.kind:
            case Kind.INTENT:
                found |= _of_intent(step.leaf.link_id, body)
                if body["policy"]["decision"] != "allow":
                    error = Reason.POLICY_DENIED.name
            case Kind.SIGNATURE:
                intent = link.latest_intent.get(step.leaf.step)
                found |= {} if intent is None else _of_intent(step.leaf.link_id, intent)
                found |= _of_signature(step.index, body)
                error = None if body["status"] == "success" else ""
                if body["duration_ms"] is not None:
                    starts.append(_ns(step.leaf.at) - round(body["duration_ms"] * 1_000_000))
            case Kind.REQUEST:
                found |= {names.WALLET_CHAIN_ID: link.chain_id, names.WALLET_TX_HASH: link.requested(body)}
                starts.append(_ns(parse_time(body["sent_at"])))
            case Kind.RESPONSE:
                ends.append(_ns(parse_time(body["received_at"])))
            case Kind.INCLUSION:
                found |= {
                    names.WALLET_CHAIN_ID: link.chain_id,
                    names.WALLET_TX_HASH: link.proven(body),
                    names.WALLET_STATE: body["status"].upper(),
                    names.WALLET_EVIDENCE_INDEX: step.index,
                }
            case Kind.REVOCATION:
                found |= {
                    names.WALLET_CHAIN_ID: link.chain_id,
                    names.WALLET_TX_HASH: link.included.get(body["block_hash"]),
                }
            case _:
                found[names.WALLET_LINK_ID] = step.leaf.link_id
    known: dict[str, AttributeValue] = {key: value for key, value in found.items() if value is not None}
    return EssentialSpan(
        trace_id=first.leaf.trace_id,
        span_id=first.leaf.span_id,
        service=service,
        name=name,
        has_own_name=has_own_name,
        start_ns=min(starts),
        end_ns=max(ends),
        error=error,
        attributes={**known, names.WALLET_REBUILT: True},
    )


def _identity(group: Sequence[EnteredStep]) -> tuple[str, str, bool]:
    """(service, name, whether the span that wrote the entries is called so)."""
    kinds = {step.leaf.kind for step in group}
    body = group[0].body
    if kinds == {Kind.INTENT} and body is not None and body["policy"]["decision"] != "allow":
        return *_DENIAL, False
    kind = group[0].leaf.kind
    if kind in _ACTING:
        return *_ACTING[kind], True
    if kind is Kind.POLICY and body is not None and body.get("act") == "approval":
        return *_APPROVAL, True
    service = _ADMINISTRATIVE[kind]
    return service, f"{service}.{kind}", False


def _of_intent(link_id: str, body: Mapping[str, Any]) -> dict[str, AttributeValue | None]:
    first_byte = int(body["unsigned_tx"][2:4], 16)
    return {
        names.WALLET_LINK_ID: link_id,
        names.WALLET_SIGNATURE_ALGORITHM: "ecdsa_secp256k1",
        names.WALLET_CHAIN_ID: body["chain_id"],
        names.WALLET_TX_SIGN_HASH: body["tx_sign_hash"],
        # EIP-2718: a list begins with 0xc0 at least, and is a legacy transaction.
        names.WALLET_TX_TYPE: first_byte if first_byte < 0x80 else 0,
        names.WALLET_POLICY_DECISION: None if body["policy"]["decision"] == "allow" else body["policy"]["decision"],
    }


def _of_signature(index: int, body: Mapping[str, Any]) -> dict[str, AttributeValue | None]:
    return {
        names.WALLET_SIGNATURE_ALGORITHM: body["algorithm"],
        names.WALLET_SIGNATURE_STATUS: body["status"],
        names.WALLET_SIGNATURE_DURATION_MS: None if body["duration_ms"] is None else float(body["duration_ms"]),
        names.WALLET_TX_HASH: body["tx_hash"],
        names.WALLET_EVIDENCE_INDEX: index if body["status"] == "success" else None,
    }


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000
