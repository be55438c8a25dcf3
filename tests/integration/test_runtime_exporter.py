"""Spans on their way to collectors that are killed, and from processes that are: each is stored, or counted as lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest

from services.runtime.settings import SERVICES_DIR
from services.runtime.span_frames import first_frames

_DEADLINE_S = 60.0

# A service as far as its spans go. It ends one for each number it is asked for, and tells when it has.
_SERVICE = """
import sys
from opentelemetry import trace
from services.runtime.logs import start_logging
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import start_telemetry, stop_telemetry
from services.runtime.transfer_span import TransferSpans, transfer_parent
start_logging("signer", "INFO")
start_telemetry("signer", ServiceSettings())
spans = TransferSpans(trace.get_tracer("test"))
for line in sys.stdin:
    number = int(line)
    spans.start("signer.signature", transfer_parent(number, number), {"wallet.link.id": f"t-{number}"}).end()
    print(number, flush=True)
stop_telemetry()
"""


class CollectorProcess:
    """One of several; its file outlives it."""

    def __init__(self, port: int, tls_dir: Path, file: Path) -> None:
        self.port = port
        self._file = file
        self._command = [sys.executable, "-m", "tests.fakes.otlp_collector", str(port), str(tls_dir), str(file)]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=SERVICES_DIR.parent, env={"PATH": os.defpath}, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def stored(self) -> Counter[str]:
        """Spans, each as often as it came, with its bytes' hash."""
        return Counter(self._file.read_text().splitlines()) if self._file.exists() else Counter()


@pytest.fixture
def collectors(dev_ca: Callable[[str], Path], tmp_path: Path) -> Iterator[list[CollectorProcess]]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(3)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in bound]
    made = [CollectorProcess(port, dev_ca("tracestore"), tmp_path / f"collector-{port}") for port in ports]
    yield made
    for collector in made:
        collector.kill()


class ServiceProcess:
    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def end_spans(self, numbers: range) -> None:
        """Return once the last one has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        for number in numbers:
            stdin.write(f"{number}\n")
            stdin.flush()
            for line in stdout:
                if line.strip() == str(number):
                    break
                with self._log.open("a") as log:
                    log.write(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> str:
        """Its log, after it has ended by itself."""
        out, _ = self._process.communicate(timeout=_DEADLINE_S)
        return out


@pytest.fixture
def service(dev_ca: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    with ExitStack() as started:

        def start(collectors: list[CollectorProcess], **variables: str) -> ServiceProcess:
            environment = {
                "PATH": os.defpath,
                "WALLET_TLS_DIR": str(dev_ca("signer")),
                "WALLET_SPOOL_DIR": str(tmp_path / "spool"),
                "OTEL_EXPORTER_OTLP_ENDPOINT": "ipv4:" + ",".join(f"127.0.0.1:{one.port}" for one in collectors),
                "OTEL_BSP_SCHEDULE_DELAY": "100",
                **variables,
            }
            process = started.enter_context(_ended(environment))
            return ServiceProcess(process, tmp_path / "service.log")

        yield start


@contextmanager
def _ended(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVICE],
        env=environment,
        cwd=SERVICES_DIR.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stored(collectors: list[CollectorProcess]) -> Counter[str]:
    return sum((one.stored() for one in collectors), Counter())


def traces(spans: Counter[str]) -> set[int]:
    return {int(line[:32], 16) for line in spans}


def until(condition: Callable[[], object], what: str) -> None:
    end = monotonic() + _DEADLINE_S
    while not condition():
        assert monotonic() < end, what
        sleep(0.02)


def in_spool(directory: Path) -> int:
    """Spans in the files of a directory."""
    return sum(first_frames(path.read_bytes(), 1 << 30).spans for path in directory.glob("*.spool"))


def test_two_of_three_collectors_die_under_load_and_nothing_is_lost(
    collectors: list[CollectorProcess], service: Callable[..., ServiceProcess]
) -> None:
    for collector in collectors:
        collector.start()
    signer = service(collectors)
    made = 0

    def with_more(condition: Callable[[], object]) -> Callable[[], object]:
        """The same, with a hundred further spans at each look."""

        def look() -> object:
            nonlocal made
            signer.end_spans(range(made + 1, made + 101))
            made += 100
            return condition()

        return look

    until(with_more(lambda: all(one.stored() for one in collectors)), "every collector gets its share")
    for collector in collectors[:2]:
        collector.kill()
    third = collectors[2].stored().total()
    until(with_more(lambda: collectors[2].stored().total() >= third + 1000), "one collector is enough")
    # What the two had acknowledged they have; all else the third takes.
    until(lambda: len(traces(stored(collectors))) == made, "nothing waits for those that are gone")
    before = [one.stored().total() for one in collectors[:2]]
    for collector in collectors[:2]:
        collector.start()
    until(
        with_more(lambda: all(one.stored().total() > had for one, had in zip(collectors, before, strict=False))),
        "those that came back get their share",
    )
    signer.stop()
    found = stored(collectors)
    assert traces(found) == set(range(1, made + 1))
    # What was sent again is the same span with the same bytes: a store keeps one of them.
    assert len(found) == made


def test_a_collector_that_hangs_holds_up_nothing_for_long(
    collectors: list[CollectorProcess], service: Callable[..., ServiceProcess]
) -> None:
    for collector in collectors[:2]:
        collector.start()
    signer = service(collectors[:2])
    signer.end_spans(range(1, 101))
    until(lambda: len(traces(stored(collectors))) == 100, "both work")
    collectors[0].send_signal(signal.SIGSTOP)
    try:
        signer.end_spans(range(101, 201))
        until(lambda: len(traces(stored(collectors))) == 200, "the other one takes what the first does not answer")
    finally:
        collectors[0].send_signal(signal.SIGCONT)


def test_a_killed_processs_spans_are_sent_once_by_whoever_finds_them(
    collectors: list[CollectorProcess], service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    collectors = collectors[:1]
    signer = service(collectors)
    signer.end_spans(range(1, 501))
    until(lambda: in_spool(tmp_path / "spool") == 500, "ended spans are in the file though no collector is there")
    signer.kill()
    # A crash in the middle of a write, too.
    (left,) = (tmp_path / "spool").glob("*.spool")
    with left.open("ab") as file:
        file.write(left.read_bytes()[:100])
    collectors[0].start()
    # Several find it at once; one of another service must not.
    other = service(collectors, WALLET_SPOOL_DIR=str(tmp_path / "other"))
    found = [service(collectors) for _ in range(3)]
    until(lambda: len(traces(stored(collectors))) == 500, "what was left is sent")
    logs = [process.stop() for process in (*found, other)]
    assert stored(collectors) == Counter(stored(collectors).keys())
    assert sum("taken over" in log for log in logs) == 1
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_ended_span_is_in_the_spool_soon_though_its_process_does_nothing_more(
    collectors: list[CollectorProcess], service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    signer = service(collectors[:1])
    signer.end_spans(range(1, 2))
    ended = monotonic()
    until(lambda: in_spool(tmp_path / "spool") == 1, "it is written")
    # 200 ms, and what a busy machine adds.
    assert monotonic() - ended < 2.0


def test_what_a_stopped_process_could_not_send_its_successor_sends(
    collectors: list[CollectorProcess], service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    signer = service(collectors[:1])
    signer.end_spans(range(1, 11))
    began = monotonic()
    signer.stop()
    assert monotonic() - began < 15
    assert in_spool(tmp_path / "spool") == 10
    collectors[0].start()
    successor = service(collectors[:1])
    successor.end_spans(range(11, 12))
    until(lambda: traces(stored(collectors)) == set(range(1, 12)), "all is there")
    successor.stop()
    assert list((tmp_path / "spool").iterdir()) == []
