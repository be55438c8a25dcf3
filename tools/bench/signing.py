"""Signatures through gRPC, policy, register, evidence and token, beside what the token, the disk and gRPC allow."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from statistics import mean, median
from time import perf_counter

from grpc_health.v1 import health_pb2
from sqlalchemy import text

from protos.wallet.v1 import common_pb2, signer_pb2
from services.core.addresses import Address
from services.core.transactions import Eip1559Transaction, encode_unsigned
from services.runtime.telemetry import new_traceparent
from tools.bench.bare_token import BareToken, bare_token
from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.samples import describe_ms, percentile
from tools.bench.suite import Account, BenchFailed, Suite
from tools.bench.usage import cpu_seconds, own_cpu_seconds

_BATCH_SIZE = 100
_IN_FLIGHT = 4
_WARM_UP_BATCHES = 8
_WARM_UP_SINGLES = 20
_BATCH_TIMEOUT_S = 30.0


class Transactions:
    """Requests to sign, each of the account's next nonce."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._nonces: Iterator[int] = itertools.count()

    def next(self) -> signer_pb2.SignTransactionRequest:
        tx = Eip1559Transaction(
            chain_id=31337,
            nonce=next(self._nonces),
            max_priority_fee_per_gas_wei=10**9,
            max_fee_per_gas_wei=3 * 10**9,
            gas_limit=21_000,
            to=Address(secrets.token_bytes(20)),
            value_wei=1,
        )
        request = signer_pb2.SignTransactionRequest(
            transfer_id=f"bench-{secrets.token_hex(12)}",
            unsigned_tx=encode_unsigned(tx),
            from_address=self._account.address,
            key=self._account.key,
            requester=common_pb2.Requester(actor="bench", source_ip="127.0.0.1"),
            traceparent=new_traceparent(),
        )
        request.requester.requested_at.GetCurrentTime()
        return request

    def batches(self, count: int) -> list[signer_pb2.SignTransactionsRequest]:
        return [
            signer_pb2.SignTransactionsRequest(items=[self.next() for _ in range(_BATCH_SIZE)]) for _ in range(count)
        ]


async def measure_signing(suite: Suite, effort: Effort, figures: Figures) -> None:
    account = await suite.account()
    transactions = Transactions(account)
    async with bare_token(suite, account) as token:
        await _warm_up(suite, transactions, token)
        await _measure_single(suite, effort, figures, transactions, token)
        await _measure_batches(suite, effort, figures, transactions, token)


async def _warm_up(suite: Suite, transactions: Transactions, token: BareToken) -> None:
    await token.sign(_WARM_UP_SINGLES)
    for _ in range(_WARM_UP_SINGLES):
        await suite.signer.SignTransaction(transactions.next())
    await _sign_all(suite, transactions.batches(_WARM_UP_BATCHES))


async def _measure_single(
    suite: Suite, effort: Effort, figures: Figures, transactions: Transactions, token: BareToken
) -> None:
    """C_Sign, commit, echo and signature in turns, so that a machine that slows down slows all four."""
    count = effort.singles_a_round
    bare: list[float] = []
    commits: list[float] = []
    echoes: list[float] = []
    singles: list[float] = []
    requests = [transactions.next() for _ in range(effort.single_rounds * count)]
    suite.sql("CREATE TABLE IF NOT EXISTS public.bench_commits (number bigint PRIMARY KEY, body bytea NOT NULL)")
    database = suite.open_database()
    numbers = itertools.count()
    body = secrets.token_bytes(500)
    insert = text("INSERT INTO public.bench_commits VALUES (:number, :body)")

    async def commit() -> None:
        async with database.statement() as connection:
            await connection.execute(insert, {"number": next(numbers), "body": body})

    async def echo() -> None:
        await suite.signer_health.Check(health_pb2.HealthCheckRequest())

    async def sign() -> None:
        await suite.signer.SignTransaction(requests.pop())

    try:
        for step in (commit, echo):
            await _timed(step, _WARM_UP_SINGLES)
        for _ in range(effort.single_rounds):
            bare += await token.sign(count)
            commits += await _timed(commit, count)
            echoes += await _timed(echo, count)
            singles += await _timed(sign, count)
        concurrent = await _timed_together(commit, count * 4)
    finally:
        await database.close()
        suite.sql("DROP TABLE IF EXISTS public.bench_commits")
    floor = median(bare) + 4 * median(commits) + 3 * median(echoes)
    figures.add(
        "sign_single_p50_vs_floor",
        median(singles) / floor,
        "p50 of SignTransaction, one after another, to C_Sign + 4 commits + 3 echoes",
    )
    figures.add("sign_single_p99_vs_floor", percentile(singles, 99) / floor, "its p99 to the same floor")
    figures.add("sign_single_p50_ms", median(singles) * 1000)
    figures.add("sign_single_p99_ms", percentile(singles, 99) * 1000)
    figures.add("floor_c_sign_p50_ms", median(bare) * 1000, "in a child that does nothing else")
    figures.add(
        "floor_commit_p50_ms", median(commits) * 1000, "INSERT of one row, same PostgreSQL, same Database class"
    )
    figures.add("floor_echo_p50_ms", median(echoes) * 1000, "gRPC health check of signer over mTLS, untraced")
    figures.add("postgres_commits_per_s_1_connection", 1 / mean(commits), "one row each, one after another")
    figures.add("postgres_commits_per_s_5_connections", concurrent, "the same on a service's whole pool")
    figures.samples["sign_single"] = describe_ms(singles)
    figures.samples["floor"] = {
        "c_sign": describe_ms(bare),
        "commit": describe_ms(commits),
        "echo": describe_ms(echoes),
    }


async def _measure_batches(
    suite: Suite, effort: Effort, figures: Figures, transactions: Transactions, token: BareToken
) -> None:
    """Bare loop, batches, bare loop, …: the batches stand between two measures of the token."""
    bare_rates = [_rate(await token.sign(effort.bare_signatures))]
    batch_rates: list[float] = []
    own_cpu = wall_s = 0.0
    spent: dict[str, float] = {}
    for _ in range(effort.batch_rounds):
        batches = transactions.batches(effort.batches_a_round)
        cpu_before, own_before, started = cpu_seconds(suite.stack), own_cpu_seconds(), perf_counter()
        await _sign_all(suite, batches)
        elapsed = perf_counter() - started
        own_cpu += own_cpu_seconds() - own_before
        wall_s += elapsed
        for name, seconds in cpu_seconds(suite.stack).items():
            spent[name] = spent.get(name, 0.0) + seconds - cpu_before[name]
        batch_rates.append(len(batches) * _BATCH_SIZE / elapsed)
        bare_rates.append(_rate(await token.sign(effort.bare_signatures)))
    signatures = effort.batch_rounds * effort.batches_a_round * _BATCH_SIZE
    figures.add(
        "sign_batch_vs_bare_token",
        mean(batch_rates) / mean(bare_rates),
        f"SignTransactions of {_BATCH_SIZE}, {_IN_FLIGHT} in flight, one worker, to a bare loop of C_Sign",
    )
    figures.add("sign_batch_per_s", mean(batch_rates), "signatures, each with its two entries in the log")
    figures.add("bare_token_per_s", mean(bare_rates), "C_Sign in a loop, before, between and after")
    figures.add("sign_batch_load_cpu_cores", own_cpu / wall_s, "cores that the load generator used meanwhile")
    figures.samples["sign_batch"] = {
        "batch_rates_per_s": batch_rates,
        "bare_rates_per_s": bare_rates,
        "load_generator_cpu_us_per_signature": own_cpu / signatures * 1e6,
        "cpu_us_per_signature": {name: round(seconds / signatures * 1e6, 1) for name, seconds in spent.items()},
    }


async def _sign_all(suite: Suite, batches: Sequence[signer_pb2.SignTransactionsRequest]) -> None:
    waiting = iter(batches)

    async def sign() -> None:
        for batch in waiting:
            reply = await suite.signer.SignTransactions(batch, timeout=_BATCH_TIMEOUT_S)
            for result in reply.results:
                if result.HasField("error"):
                    raise BenchFailed(f"not signed: {result.error.reason} {result.error.message}")

    async with asyncio.TaskGroup() as group:
        for _ in range(_IN_FLIGHT):
            group.create_task(sign())


def _rate(durations_s: Sequence[float]) -> float:
    return len(durations_s) / sum(durations_s)


async def _timed(step: Callable[[], Awaitable[None]], count: int) -> list[float]:
    """Seconds of each of `count` steps, one after another."""
    durations: list[float] = []
    for _ in range(count):
        started = perf_counter()
        await step()
        durations.append(perf_counter() - started)
    return durations


async def _timed_together(step: Callable[[], Awaitable[None]], count: int, together: int = 5) -> float:
    """Steps per second with `together` of them at any time."""
    started = perf_counter()
    await asyncio.gather(*(_timed(step, count // together) for _ in range(together)))
    return count // together * together / (perf_counter() - started)
