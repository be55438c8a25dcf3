"""Nonces that nothing may be on its way to the chain for, while later ones wait behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from services.core.errors import WalletError
from services.txbuilder.chain import ChainReader
from services.txbuilder.gap_store import GapStore, Slot
from services.txbuilder.store import AccountKey

_log = logging.getLogger(__name__)

MOST = 1_000
# Accounts that one search asks the chain about.
PAGE = 32


@dataclass(frozen=True, slots=True)
class Gap:
    account: AccountKey
    nonce: int
    # Who holds it; "" where nobody does.
    transfer_id: str


@dataclass(frozen=True, slots=True)
class GapPage:
    gaps: list[Gap]
    # Where the next search begins; None after the last account.
    next: AccountKey | None


class GapSearch:
    def __init__(self, store: GapStore, chain: ChainReader) -> None:
        self._store = store
        self._chain = chain

    async def run(self, older_than_s: float, after: AccountKey | None = None) -> GapPage:
        """Those that have stood for `older_than_s`, of the next 32 accounts `after` one: at most 1,000, the lowest of
        each account first.

        An account whose chain cannot be read now is left out.
        """
        accounts = await self._store.unfinished(self._chain.chain_ids, older_than_s, after, PAGE)
        searches = await asyncio.gather(*(self._search(account, older_than_s) for account in accounts))
        in_turn = sorted((place, number) for number, gaps in enumerate(searches) for place in range(len(gaps)))
        gaps = [searches[number][place] for place, number in in_turn[:MOST]]
        return GapPage(gaps, accounts[-1] if len(accounts) == PAGE else None)

    async def _search(self, account: AccountKey, older_than_s: float) -> list[Gap]:
        try:
            state = await self._chain.account_state(account.chain_id, account.address)
        except WalletError as error:
            _log.warning("an account cannot be searched for gaps", extra={"error": str(error)})
            return []
        # What is final on k nodes is retired; downward the chain frees nothing.
        await self._store.retire(account, state.finalized_nonce)
        slots = await self._store.slots(account, state.mined_nonce, older_than_s, MOST)
        found = islice(find_gaps(slots, state.mined_nonce), MOST)
        return [Gap(account, nonce, transfer_id) for nonce, transfer_id in found]


def find_gaps(slots: Sequence[Slot], mined_nonce: int) -> Iterator[tuple[int, str]]:
    """(nonce, holder) of what stands below the highest reservation, from the first nonce that is not mined.

    `slots` are in the order of their nonces. A nonce of which nothing is recorded was passed over when the chain had a
    transaction of somebody else, and lost it since: it is as old as what is recorded next. A nonce with a superseding
    link is on its way.
    """
    highest = max((slot.nonce for slot in slots if slot.transfer_id), default=mined_nonce)
    superseded = {slot.nonce for slot in slots if slot.supersedes}
    expected = mined_nonce
    for slot in slots:
        if slot.nonce > highest:
            return
        if slot.old:
            yield from ((nonce, "") for nonce in range(expected, slot.nonce))
            if slot.nonce < highest and slot.nonce not in superseded:
                yield slot.nonce, slot.transfer_id
        expected = slot.nonce + 1
