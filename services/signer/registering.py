"""Deciding and registering: what stands in the register was decided once, by the policy that was in force then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from services.core.errors import Reason, WalletError
from services.core.terms import terms_sha256
from services.core.transactions import decode_unsigned
from services.runtime.attributes import ERROR_TYPE
from services.signer.approvals import ApprovalLog, Quorum, check_quorum
from services.signer.bodies import intent_body
from services.signer.denials import Denials, Denied, policy_denied, rule_text
from services.signer.item import Item, take_rows
from services.signer.leaves import Leaf, Leaves
from services.signer.metrics import key_load_failures
from services.signer.policy import Decision, Policy, Terms
from services.signer.policy_versions import PolicyVersions
from services.signer.replacement_store import ReplacementStore
from services.signer.replacing import BUMP_RULE, SUPERSEDING_RULE, check_bump, fee_wei
from services.signer.store import Registered, Registration, Store
from services.signer.velocity import Candidate
from services.signer.velocity_store import Counted, VelocityStore

# How often a policy may change under one call before it is to be tried again.
_DECISIONS = 3
_READS = 16  # approvals that are read at once


class Registering:
    def __init__(
        self,
        policy_versions: PolicyVersions,
        store: Store,
        velocity: VelocityStore,
        replacements: ReplacementStore,
        approvals: ApprovalLog,
        denials: Denials,
        leaves: Leaves,
    ) -> None:
        self._policy_versions = policy_versions
        self._store = store
        self._velocity = velocity
        self._replacements = replacements
        self._approvals = approvals
        self._denials = denials
        self._leaves = leaves

    async def register(self, items: Sequence[Item]) -> None:
        """Enter each item's transaction, or take the row that it has; what may not be signed drops out.

        Raises:
            WalletError: DATABASE_UNAVAILABLE, EVIDENCE_UNAVAILABLE.
        """
        open_items = list(items)
        for _ in range(_DECISIONS):
            policy = await self._policy_versions.entered_policy()
            await self._decide(open_items, policy)
            open_items = await self._enter(open_items, policy)
            if not open_items or not await self._policy_versions.changed_since(policy):
                break
        for item in open_items:
            # What stood in the way has been voided since.
            item.error = WalletError(Reason.NONCE_CONFLICT, Reason.NONCE_CONFLICT.meaning)

    async def _decide(self, items: Sequence[Item], policy: Policy) -> None:
        clocks = [datetime.now(UTC)]
        if policy.reads_clock:
            clocks.append(await self._store.clock())
        for item in items:
            tx = item.intended.tx
            if item.request.supersedes is not None:
                item.decision = Decision(True, (SUPERSEDING_RULE,))
            else:
                terms = Terms(tx.chain_id, tx.to, tx.value_wei, tx.data)
                item.decision = policy.decide(terms, item.request.from_address, clocks, fee_wei(tx))
        allowed = [item for item in items if item.decision.allowed]
        # The key is looked at before anything is entered: a transaction of an unknown key leaves no trace.
        await fetch_leaves(self._leaves, allowed)
        await self._read_approvals([item for item in allowed if item.decision.approval is not None], policy)

    async def _read_approvals(self, items: Sequence[Item], policy: Policy) -> None:
        if items:
            turn = asyncio.Semaphore(_READS)
            # The clock by which they were given, whatever this machine's says.
            now = await self._store.clock()
            await asyncio.gather(*(self._read_approval(item, policy, now, turn) for item in items))

    async def _read_approval(self, item: Item, policy: Policy, now: datetime, turn: asyncio.Semaphore) -> None:
        rule, tx = item.decision.approval, item.intended.tx
        assert rule is not None
        async with turn:
            approvals = await self._approvals.read(f"{item.link_id}:approval")
        actor = item.request.requester.actor
        askers = frozenset() if actor is None else frozenset({actor})
        quorum = Quorum(rule.needed, rule.valid_s, rule.names, askers, policy.approver_keys)
        terms = terms_sha256(tx.chain_id, item.request.from_address, tx.to, tx.value_wei, tx.data)
        try:
            item.approvals = tuple(check_quorum(approvals, quorum, item.link_id, terms, now))
            item.held_back = None
        except WalletError as error:
            item.held_back = error

    async def _enter(self, items: Sequence[Item], policy: Policy) -> list[Item]:
        """Those that are neither entered nor taken, nor dropped out."""
        new = [item for item in items if item.decision.allowed and item.leaf is not None and not item.held_back]
        superseding = [item for item in new if item.request.supersedes is not None]
        counted = [item for item in new if item.decision.counted is not None]
        plain = [item for item in new if item.decision.counted is None and item.request.supersedes is None]
        entered: set[str] = set()
        if plain:
            entered |= await self._store.enter([_registration(item, policy) for item in plain])
        if counted:
            entered |= await self._enter_counted(counted, policy)
        for item in superseding:
            entered |= await self._enter_superseding(item, policy)
        rest = [item for item in items if item.link_id not in entered and item.error is None]
        return await self._take_stored(rest, policy) if rest else []

    async def _enter_counted(self, items: Sequence[Item], policy: Policy) -> set[str]:
        counted = []
        for item in items:
            assert item.decision.counted is not None
            candidate = Candidate(item.link_id, item.request.from_address, item.decision.counted)
            counted.append(Counted(_registration(item, policy), candidate))
        outcome = await self._velocity.enter(counted, datetime.now(UTC))
        for item in items:
            if item.link_id in outcome.refused:
                item.decision = Decision(False, (outcome.refused[item.link_id],))
        return outcome.entered

    async def _enter_superseding(self, item: Item, policy: Policy) -> set[str]:
        try:
            _check_fee(item, policy)
            item.intended = item.intended._replace(supersedes=item.request.supersedes)
            entered = await self._replacements.supersede(_registration(item, policy))
        except WalletError as error:
            if error.reason is Reason.DATABASE_UNAVAILABLE:
                raise
            item.held_back = error
            return set()
        return {item.link_id} if entered else set()

    async def _take_stored(self, items: Sequence[Item], policy: Policy) -> list[Item]:
        """Items that were not entered now: retries, fee bumps, refusals, and conflicts of every kind."""
        registered, holders = await self._store.find([(item.link_id, item.key) for item in items])
        denials = await self._store.find_denials([item.link_id for item in items])
        denied: list[Item] = []
        outrun: list[Item] = []
        bumps: list[tuple[Item, Registered]] = []
        unexplained: list[Item] = []
        for item in items:
            if item.link_id in registered:
                last = take_rows(item, registered[item.link_id])
                if last is not None:
                    bumps.append((item, last))
            elif not item.decision.allowed:
                denied.append(item)
            elif item.leaf_error is not None:
                item.error = item.leaf_error
            elif item.held_back is not None:
                item.error = item.held_back
            elif item.link_id in denials:
                item.error = policy_denied(denials[item.link_id].rule)
            elif item.key not in holders:
                unexplained.append(item)
            elif item.request.supersedes is not None:
                outrun.append(item)
            else:
                item.error = WalletError(Reason.NONCE_REGISTERED, Reason.NONCE_REGISTERED.meaning)
        unentered = await self._enter_bumps(bumps, policy) if bumps else []
        if (denied or outrun or unentered) and await self._policy_versions.changed_since(policy):
            return unexplained + denied + outrun + unentered
        await self._record(denied, policy)
        for item in outrun:
            item.error = WalletError(Reason.NONCE_REGISTERED, Reason.NONCE_REGISTERED.meaning)
        for item in unentered:
            item.error = WalletError(Reason.NONCE_CONFLICT, Reason.NONCE_CONFLICT.meaning)
        return unexplained

    async def _record(self, denied: Sequence[Item], policy: Policy) -> None:
        for item in denied:
            item.error = policy_denied(rule_text(item.decision.rules))
        outcomes = await self._denials.record(
            [Denied(one.link_id, one.intended, one.decision, *one.span.entry_ids) for one in denied], policy
        )
        for item, outcome in zip(denied, outcomes, strict=True):
            if isinstance(outcome, int):
                item.intent_index = outcome
            elif outcome.reason is Reason.NONCE_CONFLICT:
                item.error = outcome

    async def _enter_bumps(self, bumps: Sequence[tuple[Item, Registered]], policy: Policy) -> list[Item]:
        """Those that are neither entered nor taken, nor dropped out."""
        await fetch_leaves(self._leaves, [item for item, _ in bumps if item.leaf is None and item.leaf_error is None])
        for item, last in bumps:
            assert last.unsigned_tx is not None
            item.attempt, item.decision, item.approvals = last.attempt + 1, Decision(True, (BUMP_RULE,)), ()
            try:
                check_bump(decode_unsigned(last.unsigned_tx), item.intended.tx)
                _check_fee(item, policy)
                if item.leaf_error is not None:
                    raise item.leaf_error
            except WalletError as error:
                item.error = error
        new = [item for item, _ in bumps if item.error is None]
        if not new:
            return []
        entered = await self._replacements.enter_bumps([_registration(item, policy) for item in new])
        late = [item for item in new if item.link_id not in entered]
        if not late:
            return []
        # Another call was first, with the same transaction or another, the link has been superseded since, or the
        # policy is no more in force.
        registered, _ = await self._store.find([(item.link_id, item.key) for item in late])
        return [item for item in late if take_rows(item, registered[item.link_id]) is not None]


async def fetch_leaves(leaves: Leaves, items: Iterable[Item]) -> None:
    """Each item's leaf, or why it has none."""
    by_key: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        by_key.setdefault((item.request.key_id, item.request.key_version), []).append(item)
    # Nearly always one, and at hand: no task for that.
    found = (
        [await _leaf(leaves, *key) for key in by_key]
        if len(by_key) == 1
        else await asyncio.gather(*(_leaf(leaves, *key) for key in by_key))
    )
    for leaf, of_key in zip(found, by_key.values(), strict=True):
        for item in of_key:
            if isinstance(leaf, WalletError):
                item.leaf_error = leaf
            elif leaf.address != item.request.from_address:
                item.leaf_error = WalletError(
                    Reason.KEY_NOT_FOUND, "the key is not the sender's", field="from_address", rule="is the key's"
                )
            else:
                item.leaf = leaf


async def _leaf(leaves: Leaves, key_id: str, version: int) -> Leaf | WalletError:
    try:
        return await leaves.get(key_id, version)
    except WalletError as error:
        key_load_failures.add(1, {ERROR_TYPE: error.reason.name})
        return error


def _check_fee(item: Item, policy: Policy) -> None:
    """What is signed again, or instead of another, is not decided again, but for what it may cost."""
    if policy.fee_wei is not None and fee_wei(item.intended.tx) > policy.fee_wei:
        raise WalletError(
            Reason.FEE_CAP_REACHED,
            Reason.FEE_CAP_REACHED.meaning,
            field="unsigned_tx",
            rule=f"limits.fee_wei: {fee_wei(item.intended.tx)} is above {policy.fee_wei}",
        )


def _registration(item: Item, policy: Policy) -> Registration:
    item.intent_body = intent_body(item.intended, policy, item.decision, item.approvals)
    return Registration(
        item.link_id,
        item.key,
        item.request.unsigned_tx,
        policy.version,
        item.intent_body,
        item.attempt,
        item.intended.supersedes,
    )
