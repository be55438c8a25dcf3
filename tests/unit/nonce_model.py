"""A model of all that touches a nonce: txbuilder's tables, signer's register, gateway's saga, pools and the chain.

Each actor is a generator that yields wherever a process may die or be overtaken: between any two durable steps. What
happens between two yields is one statement or one transaction of the real services, by its name. The model is weaker
than they are: there is no nonce lock, and an account's row is not locked while it is decided what to allocate, for the
argument (docs/adr, "The nonce theorem") claims that unique keys and compared epochs are enough. `without` takes guards
away, to see that a check would notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from services.txbuilder.gap_store import Slot
from services.txbuilder.gaps import find_gaps

T = TypeVar("T")
Steps = Generator[None, None, T]

FOREIGN = "foreign"
GUARDS = (
    # txbuilder
    "one reservation a transfer",
    "one holder a nonce",
    "one superseding link a nonce",
    "epoch",
    "void before release",
    "a superseded nonce is not freed",
    "unheld gaps are found",
    "held gaps are freed",
    # signer
    "one transfer a nonce",
    "one nonce a link",
    "voided is not signed",
    "signed is not voided",
    "superseded is not signed",
    "a void gives the mark back",
    "intent before signature",
    # gateway
    "fails only when the nonce is spent",
)


class Tx(NamedTuple):
    """A transaction; the fee names its version."""

    link: str
    nonce: int
    fee: int


class Refused(Exception):
    """An answer: FAILED_PRECONDITION and the like."""


class Again(Exception):
    """ABORTED: the step is started again."""


@dataclass
class Reservation:
    link: str
    nonce: int | None
    # None: a transfer. "": it holds the nonce itself.
    supersedes: str | None = None
    fees: list[int] = field(default_factory=list)


@dataclass
class Registered:
    link: str
    tx: Tx | None
    supersedes: str | None = None
    intended: bool = False
    signed: bool = False
    voided: bool = False
    superseded_by: str | None = None


@dataclass
class Transfer:
    link: str
    supersedes: str | None = None
    # Of a superseding link.
    nonce: int | None = None
    state: str = "ACCEPTED"
    fencing: int = 0
    failing: bool = False
    # Built, oldest first; those that were signed; those that broadcaster has.
    built: list[Tx] = field(default_factory=list)
    signed: int = 0
    submitted: int = 0

    @property
    def is_closed(self) -> bool:
        return self.state in ("FINALIZED", "FAILED")


class World:
    def __init__(self, without: Iterable[str] = (), *, signer_alone: bool = False) -> None:
        """`signer_alone`: gateway's workers do not heed their fencing, and only what signer promises is checked."""
        self._without = frozenset(without)
        self._signer_alone = signer_alone
        assert self._without <= set(GUARDS)
        # txbuilder
        self.epoch = 0
        self.next_nonce: int | None = None
        self.reservations: list[Reservation] = []
        self.free: set[int] = set()
        # signer
        self.register: list[Registered] = []
        self.signed_late: list[str] = []
        # A gateway that supersedes what it should not may lose time by it; nothing else.
        self.is_gateway_wrong = False
        # gateway
        self.transfers: dict[str, Transfer] = {}
        # Raw transactions that somebody has: they may be mined at any time, for ever.
        self.sent: set[Tx] = set()
        # The chain: index is the nonce.
        self.mined: list[Tx] = []
        self.finalized = 0

    def has(self, guard: str) -> bool:
        assert guard in GUARDS
        return guard not in self._without

    # -- txbuilder

    def held(self, link: str) -> Reservation | None:
        return next((row for row in reversed(self.reservations) if row.link == link), None)

    def holders(self, nonce: int) -> list[Reservation]:
        """The rows of index reservations_nonce_held_once."""
        return [row for row in self.reservations if row.nonce == nonce and row.supersedes in (None, "")]

    def superseding(self, nonce: int) -> list[Reservation]:
        """The rows of index reservations_nonce_superseded_once."""
        return [row for row in self.reservations if row.nonce == nonce and row.supersedes is not None]

    def _reserve(self, row: Reservation) -> None:
        assert row.nonce is not None
        if self.has("one reservation a transfer") and self.held(row.link):
            raise Again
        if row.supersedes in (None, "") and self.has("one holder a nonce") and self.holders(row.nonce):
            raise Again
        if row.supersedes is not None and self.has("one superseding link a nonce") and self.superseding(row.nonce):
            raise Again
        self.reservations.append(row)

    def build(self, link: str) -> Steps[Tx]:
        """BuildTransaction."""
        if (row := self.held(link)) is not None:
            return _tx(row)
        yield
        # Store.read_epoch: raise_epoch only makes more of the others start again.
        epoch = self.epoch
        yield
        # ChainReader.account_state
        mined, finalized = len(self.mined), self.finalized
        yield
        # Store.reserve, as if the account's row were not locked: what is read …
        free = sorted(nonce for nonce in self.free if nonce >= finalized)
        following = mined if self.next_nonce is None else max(self.next_nonce, finalized)
        yield
        # … and what is written.
        if self.has("epoch") and self.epoch != epoch:
            raise Again
        self.epoch += 1
        row = Reservation(link, free[0] if free else following, None, [1])
        self._reserve(row)
        if free:
            self.free.discard(free[0])
        self.next_nonce = following if free else following + 1
        return _tx(row)

    def release(self, link: str) -> None:
        """Store.release"""
        row = self.held(link)
        if row is None:
            self.reservations.append(Reservation(link, None))
            return
        if row.nonce is None:
            return
        others = [one for one in self.holders(row.nonce) + self.superseding(row.nonce) if one is not row]
        if not others or not self.has("a superseded nonce is not freed"):
            self.free.add(row.nonce)
        row.nonce = None

    def bump(self, link: str, number: int) -> Tx:
        """ReplacementStore.replace"""
        row = self.held(link)
        if row is None or row.nonce is None or number > len(row.fees):
            raise Refused
        if number == len(row.fees):
            if any(one.link != link for one in self.superseding(row.nonce)):
                raise Refused
            row.fees.append(row.fees[-1] + 1)
        return Tx(link, row.nonce, row.fees[number])

    def supersede(self, link: str, nonce: int, supersedes: str) -> Steps[Tx]:
        """BuildSuperseding."""
        if (row := self.held(link)) is not None:
            return _tx(row)
        yield
        if nonce < self.finalized:
            raise Refused
        yield
        # ReplacementStore.supersede
        fee = 1
        if supersedes:
            old = self.held(supersedes)
            if old is None or old.nonce != nonce:
                raise Refused
            fee = old.fees[-1] + 1
        elif self.next_nonce is None or nonce >= self.next_nonce or self.holders(nonce):
            raise Refused
        if self.superseding(nonce) and self.has("one superseding link a nonce"):
            raise Refused
        if not supersedes:
            # The row of a transfer that is superseded is locked until the link stands; nothing else is.
            yield
        row = Reservation(link, nonce, supersedes, [fee])
        self._reserve(row)
        if not supersedes:
            self.free.discard(nonce)
        return _tx(row)

    def gaps(self) -> list[tuple[int, str]]:
        """GapStore.slots and the real find_gaps."""
        mined = len(self.mined)
        slots = [
            Slot(row.nonce, row.link, row.supersedes not in (None, ""), True)
            for row in self.reservations
            if row.nonce is not None and row.nonce >= mined
        ]
        slots += [Slot(nonce, "", False, True) for nonce in self.free if nonce >= mined]
        slots.sort(key=lambda slot: slot.nonce)
        found = list(find_gaps(slots, mined))
        if not self.has("unheld gaps are found"):
            found = [(nonce, link) for nonce, link in found if link or nonce in self.free]
        return found

    # -- signer

    def rows(self, link: str) -> list[Registered]:
        return [row for row in self.register if row.link == link]

    def live(self, nonce: int) -> list[Registered]:
        return [row for row in self.register if row.tx is not None and row.tx.nonce == nonce and not row.voided]

    def enter(self, tx: Tx, supersedes: str | None) -> Registered:
        """Step (3), one statement, or one transaction where it supersedes."""
        rows = self.rows(tx.link)
        if any(row.voided for row in rows):
            raise Refused
        if (same := next((row for row in rows if row.tx == tx), None)) is not None:
            return same
        if rows and self.has("one nonce a link"):
            first = rows[0].tx
            if first is None or first.nonce != tx.nonce or not rows[-1].signed or rows[-1].superseded_by:
                raise Refused
        live = [row for row in self.live(tx.nonce) if row.link != tx.link]
        if not rows:
            holders = {row.link for row in live if row.supersedes in (None, "")}
            others = {row.link for row in live if row.supersedes is not None}
            if not supersedes and holders and self.has("one transfer a nonce"):
                raise Refused
            if supersedes is not None and others and self.has("one superseding link a nonce"):
                raise Refused
            if supersedes and supersedes not in {row.link for row in live if row.supersedes is None}:
                raise Refused
        for row in self.rows(supersedes) if supersedes else []:
            row.superseded_by = tx.link
        new = Registered(tx.link, tx, supersedes)
        self.register.append(new)
        return new

    def sign(self, tx: Tx, supersedes: str | None) -> Steps[None]:
        """SignTransaction."""
        row = self.enter(tx, supersedes)
        yield
        if row.signed:
            return
        # (4)
        if self.has("intent before signature"):
            row.intended = True
        yield
        # (5), (6): the token signs; nobody else has what it made.
        yield
        self.store_signature(row)
        yield

    def store_signature(self, row: Registered) -> None:
        """Step (7), one statement under the row's lock."""
        if row.voided and self.has("voided is not signed"):
            raise Refused
        if row.superseded_by:
            if self.has("superseded is not signed"):
                raise Refused
            self.signed_late.append(row.link)
        row.signed = True

    def void(self, link: str) -> str:
        """VoidLink, one transaction: "voided", or the reason why not."""
        rows = self.rows(link)
        if any(row.signed for row in rows) and self.has("signed is not voided"):
            return "ALREADY_SIGNED"
        if any(row.superseded_by for row in rows):
            return "voided"  # the mark is as good, and keeps the nonce
        for row in rows:
            row.voided = True
            if self.has("a void gives the mark back"):
                self._give_back(row)
        if not rows:
            self.register.append(Registered(link, None, voided=True))
        return "voided"

    def _give_back(self, row: Registered) -> None:
        """The link that `row` superseded is so no more; one that was not signed stays unsigned."""
        superseded = [one for one in self.rows(row.supersedes or "") if one.superseded_by == row.link]
        was_signed = any(one.signed for one in superseded)
        for one in superseded:
            one.superseded_by, one.voided = None, not was_signed

    # -- gateway

    def claim(self, link: str) -> tuple[Transfer, int]:
        """A worker takes the lease: whoever had it before can commit nothing more to the row."""
        row = self.transfers[link]
        row.fencing += 1
        return row, row.fencing

    def _leads(self, row: Transfer, fencing: int) -> bool:
        """Compared in the statement that changes the row."""
        return self._signer_alone or row.fencing == fencing

    def carry(self, link: str) -> Steps[None]:
        """The saga of one transfer, from its row to the broadcaster."""
        row, fencing = self.claim(link)
        yield
        if row.failing:
            yield from self._fail(row, fencing)
        try:
            if row.state == "ACCEPTED":
                if row.supersedes is None:
                    tx = yield from self.build(link)
                else:
                    assert row.nonce is not None
                    tx = yield from self.supersede(link, row.nonce, row.supersedes)
                yield
                if not self._leads(row, fencing):
                    return
                row.state, row.built = "BUILT", [tx]
                yield
            while row.signed < len(row.built) or row.submitted < row.signed:
                number = row.submitted
                tx = row.built[number]
                if row.signed == number:
                    yield from self.sign(tx, row.supersedes)
                    if not self._leads(row, fencing):
                        return
                    row.signed = number + 1
                    row.state = "SIGNED" if row.state == "BUILT" else row.state
                    yield
                # Broadcaster's row; nodes have it from here on. There are no bytes of what was never signed.
                if not any(one.tx == tx and one.signed for one in self.rows(link)):
                    raise Refused
                self.sent.add(tx)
                yield
                if not self._leads(row, fencing):
                    return
                row.submitted = number + 1
                row.state = "SUBMITTED" if row.state == "SIGNED" else row.state
                yield
        except Refused:
            if self._leads(row, fencing) and not row.signed:
                yield from self._fail(row, fencing)
            elif self._leads(row, fencing):
                # A replacement that is refused is given up; what was signed goes on being sent.
                del row.built[row.signed :]

    def fail(self, link: str) -> Steps[None]:
        """Policy, or the user, is against it: before there is a signature, as far as is known."""
        row, fencing = self.claim(link)
        yield
        if not row.is_closed and not row.signed:
            yield from self._fail(row, fencing)

    def _fail(self, row: Transfer, fencing: int) -> Steps[None]:
        row.failing = True
        yield
        if not self.has("void before release"):
            self.release(row.link)
            yield
        outcome = self.void(row.link)
        yield
        if outcome == "voided":
            self.release(row.link)
            yield
            if self._leads(row, fencing):
                row.state = "FAILED"
        elif outcome == "ALREADY_SIGNED" and self._leads(row, fencing):
            row.failing = False

    def mismatch(self, link: str) -> Steps[None]:
        """The first run finds that the builder's answer is not what was asked: FAILED, its nonce still held."""
        row, fencing = self.claim(link)
        if fencing != 1 or row.supersedes is not None:
            return
        yield from self.build(link)
        yield
        if self._leads(row, fencing):
            row.state = "FAILED"

    def cancel(self, link: str) -> Steps[None]:
        """`:cancel`."""
        row = self.transfers[link]
        if row.is_closed or row.supersedes is not None:
            return
        if not row.signed:
            yield from self.fail(link)
            if row.state == "FAILED" or row.failing or not row.built:
                return
        yield
        names = [f"{link}:cancel.{turn}" for turn in range(16)]
        stored = [self.transfers[name] for name in names if name in self.transfers]
        if len(stored) < len(names) and all(one.state == "FAILED" and not one.signed for one in stored):
            name = names[len(stored)]
            self.transfers[name] = Transfer(name, supersedes=link, nonce=row.built[0].nonce)

    def replace(self, link: str) -> Steps[None]:
        """A stall: replacement n + 1 is wanted, built, and carried."""
        row, fencing = self.claim(link)
        if row.is_closed or row.failing or row.submitted != len(row.built) or not row.built:
            return
        yield
        try:
            tx = self.bump(link, len(row.built))
        except Refused:
            return
        yield
        if self._leads(row, fencing):
            row.built.append(tx)
            yield
            yield from self.carry(link)

    def repair(self) -> Steps[None]:
        """The worker that asks for gaps."""
        for nonce, holder in self.gaps():
            yield
            if not holder:
                self._fill(nonce, "")
                continue
            known = self.transfers.get(holder)
            if (known is not None and known.state != "FAILED") or not self.has("held gaps are freed"):
                continue
            outcome = self.void(holder)
            yield
            if outcome == "voided":
                self.release(holder)
            elif outcome == "ALREADY_SIGNED":
                self._fill(nonce, holder)

    def _fill(self, nonce: int, supersedes: str) -> None:
        """SupersedingRows.fill_gap. A link that failed is closed for ever: the next one has another name."""
        links = [f"gap:{nonce}.{turn}" for turn in range(16)]
        stored = [self.transfers[link] for link in links if link in self.transfers]
        if all(row.state == "FAILED" for row in stored) and len(stored) < len(links):
            link = links[len(stored)]
            self.transfers[link] = Transfer(link, supersedes=supersedes, nonce=nonce)

    def observe(self) -> None:
        """What broadcaster tells of finalized blocks, k nodes agreeing."""
        final = self.mined[: self.finalized]
        for row in self.transfers.values():
            if row.is_closed or not row.built:
                continue
            nonce = row.built[0].nonce
            if any(tx.link == row.link for tx in final):
                row.state = "FINALIZED"
            elif row.signed and (nonce < len(final) or not self.has("fails only when the nonce is spent")):
                row.state = "FAILED"

    # -- the chain

    def mine(self, choose: Callable[[list[Tx]], Tx]) -> bool:
        """Of all that is known for the account's next nonce, any."""
        candidates = sorted(tx for tx in self.sent if tx.nonce == len(self.mined))
        if candidates:
            self.mined.append(choose(candidates))
        return bool(candidates)

    def mine_foreign(self) -> None:
        self.mined.append(Tx(FOREIGN, len(self.mined), 0))

    def reorganise(self, depth: int) -> None:
        """Never below what is finalized."""
        del self.mined[max(self.finalized, len(self.mined) - depth) :]

    def finalize(self, count: int) -> None:
        self.finalized = min(len(self.mined), self.finalized + count)

    # -- what must hold after every step; the numbers are those of the argument

    def check(self) -> None:
        if not self._signer_alone:
            self._check_builder()
        self._check_signatures()

    def _check_builder(self) -> None:
        live = [row for row in self.reservations if row.nonce is not None]
        holders = Counter(row.nonce for row in live if row.supersedes in (None, ""))
        superseding = Counter(row.nonce for row in live if row.supersedes is not None)
        # (I1) One row a link; one holder and at most one superseding link a nonce.
        assert max(Counter(row.link for row in self.reservations).values(), default=0) <= 1, "I1: a link twice"
        assert max(holders.values(), default=0) <= 1, "I1: a nonce held twice"
        assert max(superseding.values(), default=0) <= 1, "I1: a nonce superseded twice"
        # (I2) What was given out is held, free, or nobody's; what is free is nobody's; nothing is above the next.
        following = self.next_nonce or 0
        assert not self.free & {row.nonce for row in live}, "I2: a free nonce is held"
        assert all(row.nonce is not None and row.nonce < following for row in live), "I2: held above the next"
        assert all(nonce < following for nonce in self.free), "I2: free above the next"
        # (I3) What is free was never signed, nor can be.
        for nonce in self.free:
            assert not self.live(nonce), "I3: a free nonce is registered"

    def _check_signatures(self) -> None:
        # (I4) One transfer and at most one superseding link are registered for a nonce.
        registered = [row for row in self.register if row.tx is not None and not row.voided]
        for rows, most in (
            ([row for row in registered if row.supersedes is None], 1),
            ([row for row in registered if row.supersedes is not None], 1),
        ):
            by_nonce: dict[int, set[str]] = {}
            for row in rows:
                assert row.tx is not None
                by_nonce.setdefault(row.tx.nonce, set()).add(row.link)
            assert all(len(links) <= most for links in by_nonce.values()), "I4: a nonce registered twice"
        # (I5) One nonce a link.
        nonces: dict[str, set[int]] = {}
        for row in self.register:
            if row.tx is not None:
                nonces.setdefault(row.link, set()).add(row.tx.nonce)
        assert all(len(one) == 1 for one in nonces.values()), "I5: a link under two nonces"
        # (I6) Voided or signed, never both; nothing is signed without its intent, nor after it was superseded.
        voided = {row.link for row in self.register if row.voided}
        signed = {row.link for row in self.register if row.signed}
        assert not voided & signed, "I6: voided and signed"
        assert all(row.intended for row in self.register if row.signed), "I6: no intent"
        assert not self.signed_late, "I6: signed after it was superseded"
        by = {row.superseded_by for row in self.register if row.superseded_by}
        assert not by & voided, "I6: superseded by what is never signed"
        # (I7) Only what is signed is sent and mined, and no link is mined twice.
        transactions = {row.tx for row in self.register if row.signed}
        assert self.sent <= transactions, "I7: sent without a signature"
        assert max(Counter(tx.link for tx in self.mined if tx.link != FOREIGN).values(), default=0) <= 1, "I7: twice"
        if not self._signer_alone:
            self._check_transfers()

    def _check_transfers(self) -> None:
        # (I8) What is closed is true for ever.
        for transfer in self.transfers.values():
            final = [tx for tx in self.mined[: self.finalized] if tx.link == transfer.link]
            if transfer.state == "FINALIZED":
                assert final, "I8: finalized and not on the chain"
            if transfer.state == "FAILED":
                assert not final, "I8: failed and mined"
                for row in self.rows(transfer.link):
                    spent = row.tx is not None and row.tx.nonce < self.finalized
                    assert spent or not row.signed, "I8: failed while it can be mined"

    def settle(self) -> None:
        """(I9) Left alone, with a chain that goes on, everything comes to its end and no nonce is missing."""
        if self._signer_alone or self.is_gateway_wrong:
            return
        for _ in range(60):
            for link in list(self.transfers):
                if not self.transfers[link].is_closed:
                    _run(self.carry(link))
            while self.mine(max):
                pass
            self.finalize(len(self.mined))
            self.observe()
            _run(self.repair())
            self.check()
            if all(row.is_closed for row in self.transfers.values()) and not self.gaps():
                return
        raise AssertionError(f"I9: it jams; {self.gaps()=}, {len(self.mined)=}, {self.next_nonce=}")


def _tx(row: Reservation) -> Tx:
    if row.nonce is None:
        raise Refused
    return Tx(row.link, row.nonce, row.fees[0])


def _run(steps: Steps[None]) -> None:
    try:
        for _ in steps:
            pass
    except (Again, Refused):
        return
