"""The tiles over HTTP, as a stranger reads them: a client of C2SP tlog-tiles that knows only the page and a vkey."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from yarl import URL

from services.evidence.tiles_http import tiles_application
from tests.integration.running_evidence import RunningLog, entry


@dataclass
class TileClient:
    """Source: C2SP tlog-tiles, tlog-checkpoint, signed-note. No code of the services."""

    session: aiohttp.ClientSession
    url: str
    vkey: str
    token: str | None = None

    async def get(self, path: str) -> tuple[int, bytes, str]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with self.session.get(f"{self.url}/{path}", headers=headers) as reply:
            return reply.status, await reply.read(), reply.headers.get("Cache-Control", "")

    async def read(self, path: str) -> bytes:
        status, body, _ = await self.get(path)
        assert status == 200, (path, status)
        return body

    async def checkpoint(self) -> tuple[int, bytes]:
        """(size, root) of the checkpoint, its signature verified."""
        note = (await self.read("checkpoint")).decode()
        text, _, signatures = note.partition("\n\n")
        text += "\n"
        name, key_id, key = self.vkey.split("+", 2)
        mark, signer, blob = signatures.rstrip("\n").split(" ")
        raw = base64.b64decode(blob)
        assert (mark, signer, raw[:4].hex()) == ("—", name, key_id)
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)[1:]).verify(raw[4:], text.encode())
        origin, size, root = text.splitlines()
        assert origin == name
        return int(size), base64.b64decode(root)

    async def leaves(self, size: int) -> list[bytes]:
        """Every leaf, from the entry bundles of a tree of `size`."""
        leaves = []
        for number in range(-(-size // 256)):
            bundle = await self.read(tile_path("entries", number, min(256, size - 256 * number)))
            while bundle:
                length = int.from_bytes(bundle[:2], "big")
                leaves.append(bundle[2 : 2 + length])
                bundle = bundle[2 + length :]
        return leaves

    async def level(self, level: int, width: int) -> list[bytes]:
        """All `width` hashes of a tile level."""
        hashes = b"".join(
            [
                await self.read(tile_path(str(level), number, min(256, width - 256 * number)))
                for number in range(-(-width // 256))
            ]
        )
        assert len(hashes) == 32 * width
        return [hashes[begin : begin + 32] for begin in range(0, len(hashes), 32)]


def tile_path(level: str, number: int, width: int) -> str:
    parts = [f"{number % 1000:03d}"]
    while number := number // 1000:
        parts.insert(0, f"x{number % 1000:03d}")
    return f"tile/{level}/{'/'.join(parts)}" + ("" if width == 256 else f".p/{width}")


def tree_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962 over leaf hashes, by its recursive definition."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\1" + tree_root(hashes[:split]) + tree_root(hashes[split:])).digest()


@asynccontextmanager
async def reading(log: RunningLog, token: str | None = None) -> AsyncIterator[TileClient]:
    runner = web.AppRunner(tiles_application(log.tiles, log.checkpoints, token), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        yield TileClient(session, f"http://127.0.0.1:{port}", log.key.vkey)
    await runner.cleanup()


@pytest.fixture
async def log(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[RunningLog]:
    async with RunningLog(service_database("evidence").settings, dev_ca, tmp_path).running() as running:
        yield running


async def grow(log: RunningLog, size: int, present: int) -> None:
    while present < size:
        count = min(5_000, size - present)
        await log.client.append_all(*(entry(f"key:{present + number}") for number in range(count)))
        present += count
    await log.client.until(lambda status: status.checkpoint_size == size)


async def test_a_stranger_recomputes_the_root_from_entries_and_from_tiles(log: RunningLog) -> None:
    async with reading(log) as client:
        assert await log.checkpoints.wait_for(0, timeout_s=5)
        assert await client.checkpoint() == (0, sha256(b"").digest())
        present = 0
        for size in (1, 255, 256, 257, 700):
            await grow(log, size, present)
            present = size
            signed_size, root = await client.checkpoint()
            assert signed_size == size
            leaves = await client.leaves(size)
            hashes = [sha256(b"\0" + leaf).digest() for leaf in leaves]
            assert tree_root(hashes) == root
            assert await client.level(0, size) == hashes
            if size >= 256:
                assert await client.level(1, size // 256) == [
                    tree_root(hashes[begin : begin + 256]) for begin in range(0, size - 255, 256)
                ]
        # What was fetched of a smaller tree is still there, and is a part of the larger one.
        status, partial, caching = await client.get("tile/0/000.p/17")
        assert (status, partial, caching) == (200, b"".join(hashes[:17]), "public, max-age=31536000, immutable")


BAD_PATHS = [
    "",
    "tile",
    "tile/",
    "tile/0/000",  # not full
    "tile/0/000.p/11",  # beyond the tree
    "tile/0/000.p/0",
    "tile/0/000.p/256",
    "tile/0/000.p/05",
    "tile/0/1",
    "tile/0/x000/001.p/1",
    "tile/0/001.p/1",
    "tile/1/000.p/1",
    "tile/64/000.p/1",
    "tile/-1/000.p/1",
    "tile/00/000.p/1",
    "tile/entries/001.p/1",
    "tile/entries/000.p/11",
    "tile/data/000",
    "tile/0/000%2ep/1",
    "tile/0/%30%30%30.p/1",
    "tile/0/" + "x999/" * 30 + "999",
    "tile/../checkpoint.p",
    "checkpoint/",
]


async def test_bad_paths_are_not_found_and_other_methods_refused(log: RunningLog) -> None:
    await grow(log, 10, 0)
    async with reading(log) as client:
        assert (await client.get("tile/0/000.p/10"))[0] == 200
        for path in BAD_PATHS:
            async with client.session.get(URL(f"{client.url}/{path}", encoded=True)) as reply:
                assert reply.status == 404, path
        async with client.session.post(f"{client.url}/checkpoint", data=b"x") as reply:
            assert reply.status == 405


async def test_with_an_auditors_token_nothing_is_public(log: RunningLog) -> None:
    await grow(log, 3, 0)
    async with reading(log, token="wanted") as client:
        for presented in (None, "", "wante", "wanted2", "WANTED"):
            client.token = presented
            for path in ("checkpoint", "tile/0/000.p/3", "tile/entries/000.p/3", "tile/bad"):
                assert (await client.get(path))[0] == 401
        client.token = "wanted"
        assert (await client.checkpoint())[0] == 3
        assert (await client.get("tile/0/000.p/3"))[2].startswith("private")
