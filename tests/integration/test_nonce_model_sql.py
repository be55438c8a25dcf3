"""The model of the nonce theorem does what the SQL does: the same steps on both, the same answers, the same rows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import text

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.signer.replacement_store import ReplacementStore as SignerReplacements
from services.signer.store import NonceKey, Registration, SignedRow
from services.signer.store import Store as SignerStore
from services.txbuilder.gap_store import GapStore
from services.txbuilder.gaps import find_gaps
from services.txbuilder.replacement_store import ReplacementStore, Version
from services.txbuilder.store import AccountKey, NonceSequence, Reservation, Store
from tests.integration.dependencies import ServiceDatabase
from tests.unit.nonce_model import Again, Refused, Tx, World

CHAIN = 31337
_LINKS = 3
_STEPS = ["build", *["enter"] * 4, *["sign"] * 2, "void", *["release"] * 2, *["bump"] * 2, *["supersede"] * 2]
_STEPS += ["build_after_a_pause", "mine", "reorganise", "finalize"]


class Sql:
    """The stores of both services. Their tables are never emptied: each run has an account of its own."""

    def __init__(self, runner: asyncio.Runner, txbuilder: Database, signer: Database) -> None:
        self.runner = runner
        self.txbuilder, self.signer = txbuilder, signer
        self.store, self.replacements, self.gaps = Store(txbuilder), ReplacementStore(txbuilder), GapStore(txbuilder)
        self.register, self.bumps = SignerStore(signer), SignerReplacements(signer)
        self.accounts = itertools.count(1)


class Twin(RuleBasedStateMachine):
    sql: ClassVar[Sql]

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.number = next(self.sql.accounts)
        self.account = AccountKey(f"eip155:{CHAIN}", Address(self.number.to_bytes(20, "big")))

    # -- both, and what they answer

    def _real(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.sql.runner.run(work)

    def _both(self, model: Callable[[], Any], real: Callable[[], Any]) -> Any:
        """What the model answers; the tables must answer in kind."""
        with self._same_kind() as outcome:
            outcome["model"] = self._kind(model)
            outcome["real"] = self._kind(real)
        self._compare()
        return outcome["model"][1]

    @contextmanager
    def _same_kind(self) -> Iterator[dict[str, Any]]:
        outcome: dict[str, Any] = {}
        yield outcome
        assert outcome["model"][0] == outcome["real"][0], outcome

    def _kind(self, call: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return "answer", call()
        except Again:
            return "again", None
        except Refused:
            return "refused", None
        except WalletError as error:
            again = error.reason in (Reason.LEASE_LOST, Reason.NONCE_CONFLICT)
            return "again" if again else "refused", error

    def _link(self, number: int, suffix: str = "") -> str:
        return f"{self.number}-t{number}{suffix}"

    # -- txbuilder

    @initialize(mined=st.integers(0, 2))
    def begin(self, mined: int) -> None:
        for _ in range(mined):
            self.world.mine_foreign()
        for number in range(_LINKS):
            self.build(number, "", 0)

    # One rule, since hypothesis leaves rules out of a run, and few of these do anything without the others.
    @rule(
        step=st.sampled_from(_STEPS),
        number=st.integers(0, _LINKS),
        suffix=st.sampled_from(["", "", ":cancel", ":gap"]),
        place=st.integers(0, 9),
    )
    def take(self, step: str, number: int, suffix: str, place: int) -> None:
        getattr(self, step)(number, suffix, place)

    def build(self, number: int, suffix: str, place: int) -> None:
        link = self._link(number)

        def model() -> int:
            steps = self.world.build(link)
            try:
                while True:
                    next(steps)
            except StopIteration as done:
                nonce: int = done.value.nonce
                return nonce

        def real() -> int:
            found = self._real(self.sql.store.find([link]))
            if link in found:
                if found[link] is None:
                    raise Refused
                nonce: int = found[link].nonce
                return nonce
            epoch = self._real(self.sql.store.read_epoch(self.account))
            return self._reserve(link, epoch)

        self._both(model, real)

    def _reserve(self, link: str, epoch: int) -> int:
        def allocate(sequence: NonceSequence) -> list[Reservation]:
            return [Reservation(link, sequence.take(), b"\x01", b"\x00" * 32, 21_000, 1, 1)]

        mined, finalized = len(self.world.mined), self.world.finalized
        (row,) = self._real(self.sql.store.reserve(self.account, epoch, mined, finalized, allocate))
        nonce: int = row.nonce
        return nonce

    def build_after_a_pause(self, number: int, suffix: str, place: int) -> None:
        """Somebody else raised the epoch in between."""
        link = self._link(number)
        if self.world.held(link) is not None:
            return
        epoch = self._real(self.sql.store.raise_epoch(self.account))
        self._real(self.sql.store.raise_epoch(self.account))

        def stale() -> None:
            raise Again

        self._both(stale, lambda: self._reserve(link, epoch))

    def release(self, number: int, suffix: str, place: int) -> None:
        # Only what is voided is released, as gateway does.
        link = self._link(number, suffix)
        if any(row.voided for row in self.world.rows(link)):
            self._both(lambda: self.world.release(link), lambda: self._real(self.sql.store.release(link)))

    def bump(self, number: int, suffix: str, place: int) -> None:
        link = self._link(number, suffix)
        row = self.world.held(link)
        version = (len(row.fees) if row is not None else 1) + place % 4 // 3

        def real() -> int:
            found = self._real(self.sql.replacements.find(link))
            if version > len(found.versions):
                raise Refused
            stored = self._real(self.sql.replacements.replace(link, Version(version, bytes([version]), version), 1))
            number: int = stored.number
            return number

        self._both(lambda: self.world.bump(link, version), real)

    def supersede(self, number: int, suffix: str, place: int) -> None:
        old, gap = self._link(number), suffix == ":gap"
        row = self.world.held(old)
        nonce = row.nonce if row is not None and row.nonce is not None and not gap else place % 5
        link = self._link(number, ":gap" if gap else ":cancel")
        supersedes = "" if gap else old
        # Retries are answered, and nonces that are final refused, before the store is asked.
        if self.world.held(link) is not None or nonce < self.world.finalized:
            return

        def model() -> None:
            for _ in self.world.supersede(link, nonce, supersedes):
                pass

        def compose(known: Any) -> Reservation:
            assert len(known) == (0 if gap or row is None else len(row.fees))
            return Reservation(link, nonce, b"\x01", b"\x00" * 32, 21_000, 1, 1)

        def real() -> None:
            self._real(self.sql.replacements.supersede(self.account, nonce, supersedes, compose))

        self._both(model, real)

    # -- signer

    def enter(self, number: int, suffix: str, place: int) -> None:
        link = self._link(number, suffix)
        row = self.world.held(link)
        if row is None or row.nonce is None:
            return
        tx = Tx(link, row.nonce, row.fees[place % len(row.fees)])
        stored = self.world.rows(link)
        if any(one.tx == tx for one in stored):
            return  # a retry takes its row, which is read
        supersedes = row.supersedes
        registration = Registration(
            link,
            NonceKey(CHAIN, self.account.address, tx.nonce),
            bytes([tx.fee]),
            1,
            b"{}",
            len(stored) + 1,
            supersedes,
        )

        def real() -> None:
            if stored:
                entered = bool(self._real(self.sql.bumps.enter_bumps([registration])))
            elif supersedes is None:
                entered = bool(self._real(self.sql.register.enter([registration])))
            else:
                entered = self._real(self.sql.bumps.supersede(registration))
            if not entered:
                raise Refused

        self._both(lambda: self.world.enter(tx, supersedes), real)

    def sign(self, number: int, suffix: str, place: int) -> None:
        unsigned = [row for row in self.world.register if row.tx is not None and not row.signed]
        if not unsigned:
            return
        row = unsigned[place % len(unsigned)]
        attempt = self.world.rows(row.link).index(row) + 1
        row.intended = True

        def real() -> None:
            if not self._real(self.sql.register.store_signatures([SignedRow(row.link, attempt, 1, b"{}")])):
                raise Refused

        self._both(lambda: self.world.store_signature(row), real)

    def void(self, number: int, suffix: str, place: int) -> None:
        link = self._link(number, suffix)
        unsigned = [row.link for row in self.world.register if not row.signed and not row.voided]
        if unsigned and place < 7:
            link = unsigned[place % len(unsigned)]

        def real() -> str:
            try:
                self._real(self.sql.register.void(link, "test"))
            except WalletError as error:
                return error.reason.name
            return "voided"

        answers: list[str] = []
        self._both(lambda: answers.append(self.world.void(link)), lambda: answers.append(real()))
        assert answers[0] == answers[1]

    # -- the chain

    def mine(self, number: int, suffix: str, place: int) -> None:
        self.world.mine_foreign()

    def reorganise(self, number: int, suffix: str, place: int) -> None:
        self.world.reorganise(place % 3 + 1)

    def finalize(self, number: int, suffix: str, place: int) -> None:
        self.world.finalize(1)

    # -- the same rows

    def _compare(self) -> None:
        self.world.check()
        assert self._builder_rows() == self._real(self._stored_builder_rows())
        assert self._register_rows() == self._real(self._stored_register_rows())
        mined = len(self.world.mined)
        slots = self._real(self.sql.gaps.slots(self.account, mined, -1.0, 1_000))
        assert sorted(find_gaps(slots, mined)) == sorted(self.world.gaps())

    def _builder_rows(self) -> Any:
        reserved = {row.link: (row.nonce, row.supersedes, len(row.fees)) for row in self.world.reservations}
        return reserved, self.world.free, self.world.next_nonce

    async def _stored_builder_rows(self) -> Any:
        mine = {"prefix": f"{self.number}-%", "address": self.account.address}
        async with self.sql.txbuilder.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT r.transfer_id, r.nonce, r.supersedes, (
                        SELECT count(*) FROM txbuilder.replacements p WHERE p.transfer_id = r.transfer_id
                    ) AS replacements, r.unsigned_tx IS NOT NULL AS built
                    FROM txbuilder.reservations r WHERE r.transfer_id LIKE :prefix
                """),
                mine,
            )
            reserved = {
                row.transfer_id: (
                    None if row.nonce is None else int(row.nonce),
                    row.supersedes,
                    row.replacements + 1 if row.built else 0,
                )
                for row in rows
            }
            free = await connection.execute(
                text("SELECT nonce FROM txbuilder.free_nonces WHERE address = :address"), mine
            )
            following = await connection.execute(
                text("SELECT next_nonce FROM txbuilder.accounts WHERE address = :address"), mine
            )
            next_nonce = following.scalar_one_or_none()
            return reserved, {int(row.nonce) for row in free}, None if next_nonce is None else int(next_nonce)

    def _register_rows(self) -> Any:
        rows: dict[tuple[str, int], Any] = {}
        for row in self.world.register:
            attempt = sum(1 for link, _ in rows if link == row.link) + 1
            nonce = None if row.tx is None else row.tx.nonce
            rows[row.link, attempt] = (nonce, row.supersedes, row.signed, row.voided, row.superseded_by is not None)
        return rows

    async def _stored_register_rows(self) -> Any:
        rows = await self.sql.signer.rows(
            """
            SELECT link_id, attempt, nonce, supersedes, signature_body IS NOT NULL, voided_at IS NOT NULL,
                   superseded_by IS NOT NULL
            FROM signer.register WHERE link_id LIKE $1
            """,
            f"{self.number}-%",
        )
        return {(row[0], row[1]): tuple(row[2:]) for row in rows}


@pytest.fixture
def sql(service_database: Callable[[str], ServiceDatabase]) -> Iterator[Sql]:
    txbuilder, signer = service_database("txbuilder"), service_database("signer")
    signer.server.execute(
        "INSERT INTO signer.policy_versions (version, sha256, document, traceparent, body) "
        "VALUES (1, decode(repeat('00', 32), 'hex'), '', '', '')"
    )
    databases = [Database(txbuilder.settings), Database(signer.settings)]
    with asyncio.Runner() as runner:
        yield Sql(runner, *databases)
        for database in databases:
            runner.run(database.close())


def test_the_model_and_the_tables_agree(sql: Sql) -> None:
    class Bound(Twin):
        pass

    Bound.sql = sql
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=30,
            stateful_step_count=60,
            deadline=None,
            database=None,
            derandomize=True,
            # Shrinking a failure takes minutes, at a commit a step.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
