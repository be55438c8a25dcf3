"""What a policy document must not say beside something else that it says. Pure.

Asked of a document before it is put in force; one that is in force already is read as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from services.core.amounts import format_account, format_chain_id
from services.core.errors import refuse
from services.signer.policy import Policy
from services.signer.rules import Approver, Asset, AssetRule, Lists, Rules

T = TypeVar("T", bound=bytes)


def check_contradictions(policy: Policy) -> None:
    """Raises WalletError INVALID_REQUEST; `field` is the path of one of the two, the rule names the other."""
    for chain_id in policy.limits_by_chain_wei:
        path = f"rules.limits.per_chain_wei.{format_chain_id(chain_id)}"
        _check_chain(policy, chain_id, path)
        if policy.general.assets is not None and (coin := Asset(chain_id, None)) in policy.general.assets:
            refuse(path, f"is said once: rules.assets.{coin.path} says it too")
    _check_rules(policy, policy.general, "rules.")
    for (chain_id, address), rules in policy.accounts.items():
        path = f"accounts.{format_account(chain_id, address)}"
        _check_chain(policy, chain_id, path)
        _check_rules(policy, rules, f"{path}.")
    _check_keys(policy, policy.change_approvers, "changes.approvers")


def _check_chain(policy: Policy, chain_id: int, path: str) -> None:
    if chain_id not in policy.chains:
        refuse(path, "is about a chain that rules.chains.allow lists")


def _check_rules(policy: Policy, rules: Rules, path: str) -> None:
    own = rules is not policy.general
    _check_lists(rules.destinations, policy.general.destinations, f"{path}destinations.allow")
    _check_lists(rules.selectors, policy.general.selectors, f"{path}selectors.allow")
    for asset, rule in (rules.assets or {}).items():
        where = f"{path}assets.{asset.name if own else asset.path}"
        _check_chain(policy, asset.chain_id, where)
        _check_asset_rule(rule, where)
        if rule.approval is not None:
            _check_keys(policy, rule.approval.approvers, f"{where}.approvals.approvers")
        for denying in _denying(asset, rules, policy.general):
            refuse(where, f"is not about a contract that {denying} has")


def _check_lists(lists: Lists[T] | None, general: Lists[T] | None, path: str) -> None:
    if lists is None or lists.allow is None:
        return
    for denying in (lists, general):
        if denying is not None and (both := lists.allow & denying.deny):
            refuse(path, f"does not list 0x{min(both).hex()}, which {denying.path}.deny lists")


def _check_keys(policy: Policy, approvers: Iterable[Approver], path: str) -> None:
    for one in approvers:
        if one.key not in (None, policy.approver_keys.get(one.name)):
            refuse(path, f"has the key of {one.name} that stands elsewhere")
        if any(key == one.key and name != one.name for name, key in policy.approver_keys.items()):
            # Whoever has the key would be two approvers.
            refuse(path, f"has a key of {one.name} that is nobody else's")


def _denying(asset: Asset, rules: Rules, general: Rules) -> Iterator[str]:
    for lists in (rules.destinations, general.destinations):
        if asset.token is not None and lists is not None and asset.token in lists.deny:
            yield f"{lists.path}.deny"


def _check_asset_rule(rule: AssetRule, path: str) -> None:
    last = None
    for window in rule.velocity:
        if window.limit < rule.per_transfer:
            refuse(f"{path}.velocity", f"has limits of at least per_transfer, {rule.per_transfer}")
        if last is not None and window.window_s == last.window_s:
            refuse(f"{path}.velocity", f"has one limit in {window.window_s} s")
        if last is not None and window.limit < last.limit:
            refuse(f"{path}.velocity", "has limits that rise with their windows")
        last = window
    if rule.approval is not None and rule.approval.above >= rule.per_transfer:
        refuse(f"{path}.approvals.above", f"is below per_transfer, {rule.per_transfer}")
