"""A version of the signing policy, and its decision about one transaction. Pure.

What nothing allows is denied. A decision names the rules that made it: all that allowed, or the first that denied.
`policy_document` reads one; docs/POLICY.md says what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeVar

from services.core.addresses import Address
from services.core.amounts import format_account, format_chain_id
from services.signer.rules import ApprovalRule, Approver, Asset, AssetRule, Lists, Rules, Window, is_open
from services.signer.token_calls import TokenCall, read_token_call

T = TypeVar("T")


class Terms(NamedTuple):
    """What a policy looks at, beside who sends it."""

    chain_id: int
    to: Address | None  # None creates a contract
    value_wei: int
    data: bytes


class Count(NamedTuple):
    """What an allowed transaction adds to its account's velocity."""

    asset: Asset
    amount: int
    path: str
    windows: tuple[Window, ...]


class Decision(NamedTuple):
    allowed: bool
    rules: tuple[str, ...]
    approval: ApprovalRule | None = None  # allowed once these have approved
    counted: Count | None = None  # allowed if it passes these windows

    @property
    def word(self) -> str:
        """As intent bodies carry it."""
        return "allow" if self.allowed else "deny"


class _Call(NamedTuple):
    """One decision's facts."""

    terms: Terms
    own: Rules | None  # the account's
    token_call: TokenCall | None
    asset: Asset  # that the amount is of: a token with a rule, else the coin
    amount: int
    asset_rule: AssetRule | None
    clocks: Sequence[datetime]
    fee_wei: int | None


class _Denied(Exception):
    """The first rule that denies ends the decision."""


@dataclass(frozen=True, slots=True)
class Policy:
    version: int
    name: str
    document: bytes
    sha256: bytes  # of the document
    chains: frozenset[int]
    limit_wei: int | None  # per transfer, for chains without a limit of their own
    limits_by_chain_wei: dict[int, int]
    fee_wei: int | None  # the most that a transaction may pay for gas
    general: Rules
    accounts: dict[tuple[int, Address], Rules]  # by chain and address
    change_approvers: tuple[Approver, ...]  # of the next version; empty is every approver
    approver_keys: dict[str, str]  # fingerprints by name, wherever the document says them

    @property
    def reads_clock(self) -> bool:
        """Whether the hour may matter."""
        return self.general.hours is not None or any(one.hours is not None for one in self.accounts.values())

    def account_names(self) -> list[str]:
        """CAIP-10, of the accounts that have rules of their own."""
        return sorted(format_account(*account) for account in self.accounts)

    def decide(self, terms: Terms, sender: Address, clocks: Sequence[datetime], fee_wei: int | None = None) -> Decision:
        """Every rule that applies must allow; the first one that does not is the answer.

        `clocks` are readings of the present time: hours have to be open by all of them. `fee_wei` is the most that the
        transaction can pay for gas; None if that is not known yet.
        """
        call = self._read(terms, sender, clocks, fee_wei)
        rule = call.asset_rule
        try:
            texts = (
                self._chain(call),
                self._hours(call),
                self._limit(call),
                self._destination(call),
                self._selector(call),
                self._fee(call),
            )
        except _Denied as denied:
            return Decision(False, (str(denied),))
        rules = [text for text in texts if text is not None]
        if rule is None:
            return Decision(True, tuple(rules))
        approval = rule.approval if rule.approval is not None and call.amount > rule.approval.above else None
        if approval is not None:
            rules.append(f"{rule.path}.approvals: {approval.needed} above {approval.above}")
        count = Count(call.asset, call.amount, rule.path, rule.velocity) if rule.velocity and call.amount else None
        if count is not None:
            rules.extend(velocity_text(count, window) for window in count.windows)
        return Decision(True, tuple(rules), approval, count)

    def _read(self, terms: Terms, sender: Address, clocks: Sequence[datetime], fee_wei: int | None) -> _Call:
        own = self.accounts.get((terms.chain_id, sender)) if self.accounts else None
        token_call = read_token_call(terms.data) if terms.to is not None and terms.data else None
        asset, amount = Asset(terms.chain_id, None), terms.value_wei
        rule = self._asset_rule(own, asset)
        if token_call is not None and token_call.amount is not None:
            token = Asset(terms.chain_id, terms.to)
            token_rule = self._asset_rule(own, token)
            if token_rule is not None:
                asset, amount, rule = token, token_call.amount, token_rule
        return _Call(terms, own, token_call, asset, amount, rule, clocks, fee_wei)

    def _asset_rule(self, own: Rules | None, asset: Asset) -> AssetRule | None:
        for rules in (own, self.general):
            if rules is not None and rules.assets is not None and asset in rules.assets:
                return rules.assets[asset]
        return None

    # Each of these answers the text of what allows it, None where it does not apply, or raises.

    def _chain(self, call: _Call) -> str:
        if call.terms.chain_id not in self.chains:
            raise _Denied(f"chains.allow: {_chain_name(call)} is not listed")
        return f"chains.allow: {_chain_name(call)}"

    def _hours(self, call: _Call) -> str | None:
        rules = call.own if call.own is not None and call.own.hours is not None else self.general
        if rules.hours is None:
            return None
        for clock in call.clocks:
            if not is_open(rules.hours, clock):
                raise _Denied(f"{rules.path}hours: {clock:%A %H:%M} UTC is outside")
        return f"{rules.path}hours: open"

    def _limit(self, call: _Call) -> str:
        terms, rule = call.terms, call.asset_rule
        if rule is not None and call.asset.token is not None and terms.value_wei:
            # One amount a transaction: no token's own functions take coins.
            raise _Denied(f"{rule.path}: a call that moves the token carries no value")
        limit = rule.per_transfer if rule is not None else self.limits_by_chain_wei.get(terms.chain_id)
        name = f"{rule.path}.per_transfer" if rule is not None else f"limits.per_chain_wei.{_chain_name(call)}"
        if limit is None:
            limit, name = self.limit_wei, "limits.per_transfer_wei"
        if limit is None:
            raise _Denied(f"{name}: there is no limit, so no value is allowed")
        if call.amount > limit:
            raise _Denied(f"{name}: {call.amount} is above {limit}")
        return f"{name}: at most {limit}"

    def _destination(self, call: _Call) -> str:
        to = call.terms.to
        if to is None:
            rules = call.own if call.own is not None and call.own.contract_creation is not None else self.general
            if not rules.contract_creation:
                raise _Denied(f"{rules.path}contract_creation: deny")
            return f"{rules.path}contract_creation: allow"
        general, own = self.general.destinations, call.own.destinations if call.own is not None else None
        counterparty = call.token_call.counterparty if call.token_call is not None else None
        for address in (to, counterparty):
            if address is not None:
                _refuse_denied(address, general, own)
        return _allowed(to, _in_force(general, own))

    def _selector(self, call: _Call) -> str | None:
        terms = call.terms
        if terms.to is None or not terms.data:
            return None
        selector = terms.data[:4]
        general, own = self.general.selectors, call.own.selectors if call.own is not None else None
        _refuse_denied(selector, general, own)
        lists = _in_force(general, own)
        allowed = _allowed(selector, lists)
        token = Asset(terms.chain_id, terms.to)
        if call.token_call is None:
            rule = self._asset_rule(call.own, token)
            if rule is not None and lists.allow is None:
                raise _Denied(f"{rule.path}: 0x{selector.hex()} moves who knows how much: it has to be listed")
        elif call.token_call.amount is None:
            raise _Denied(f"selectors.arguments: 0x{selector.hex()} and not the one encoding of its arguments")
        elif call.asset != token and self._lists_assets(call.own):
            raise _Denied(f"assets: {token.path} is not listed")
        return allowed

    def _lists_assets(self, own: Rules | None) -> bool:
        """A policy that lists assets denies the tokens that it does not list; one that lists none bounds none."""
        return self.general.assets is not None or (own is not None and own.assets is not None)

    def _fee(self, call: _Call) -> str | None:
        if self.fee_wei is None or call.fee_wei is None:
            return None
        if call.fee_wei > self.fee_wei:
            raise _Denied(f"limits.fee_wei: {call.fee_wei} is above {self.fee_wei}")
        return f"limits.fee_wei: at most {self.fee_wei}"


def _chain_name(call: _Call) -> str:
    return format_chain_id(call.terms.chain_id)


def velocity_text(count: Count, window: Window) -> str:
    return f"{count.path}.velocity: at most {window.limit} in {window.window_s} s"


def _refuse_denied(item: T, *lists: Lists[T] | None) -> None:
    for one in lists:
        if one is not None and item in one.deny:
            raise _Denied(f"{one.path}.deny: {_text(item)}")


def _in_force(general: Lists[T] | None, own: Lists[T] | None) -> Lists[T]:
    """The lists that allow: the account's where it has one."""
    if own is not None and own.states_allow:
        return own
    assert general is not None  # of a document without: empty
    return general


def _allowed(item: T, lists: Lists[T]) -> str:
    if lists.allow is None:
        return f"{lists.path}.allow: any"
    if item not in lists.allow:
        raise _Denied(f"{lists.path}.allow: {_text(item)} is not listed")
    return f"{lists.path}.allow: {_text(item)}"


def _text(item: object) -> str:
    assert isinstance(item, bytes)
    return f"0x{item.hex()}"
