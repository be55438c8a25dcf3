"""Derivation against the published vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bip_utils import Base58Decoder

from services.core.addresses import address_of_public_key, checksum_address
from services.core.derivation import Mnemonic, Seed, derive, mnemonic_of_entropy, seed_of_mnemonic
from services.core.errors import Reason, WalletError
from services.core.paths import HARDENED, AccountPath, Algorithm, format_path

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


def _vectors(name: str) -> Any:
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def _indices(path: str) -> tuple[int, ...]:
    steps = path.split("/")[1:]
    return tuple(int(step.rstrip("'")) + (HARDENED if step.endswith("'") else 0) for step in steps)


@pytest.mark.parametrize("vector", _vectors("bip39/vectors.json"))
def test_bip39(vector: dict[str, str]) -> None:
    mnemonic = mnemonic_of_entropy(bytes.fromhex(vector["entropy"]))
    assert mnemonic == vector["mnemonic"]
    seed = seed_of_mnemonic(mnemonic, "TREZOR")
    assert seed.hex() == vector["seed"]
    serialised = Base58Decoder.CheckDecode(vector["extended_private_key"])
    assert derive(seed, Algorithm.ECDSA_SECP256K1, ()).private_key == serialised[46:]


@pytest.mark.parametrize("vector", _vectors("bip32/vectors.json"), ids=lambda v: f"{v['vector']} {v['path']}")
def test_bip32(vector: dict[str, Any]) -> None:
    node = derive(Seed(bytes.fromhex(vector["seed"])), Algorithm.ECDSA_SECP256K1, _indices(vector["path"]))
    # BIP-32, "Serialization format": chain code at 13, key at 45.
    private = Base58Decoder.CheckDecode(vector["extended_private_key"])
    public = Base58Decoder.CheckDecode(vector["extended_public_key"])
    assert (node.chain_code, b"\0" + node.private_key) == (private[13:45], private[45:])
    assert node.public_key == public[45:]
    assert format_path(_indices(vector["path"])) == vector["path"]


@pytest.mark.parametrize("vector", _vectors("slip10/vectors.json"), ids=lambda v: f"{v['curve']} {v['path']}")
def test_slip10(vector: dict[str, str]) -> None:
    algorithm = Algorithm.ED25519 if vector["curve"] == "ed25519" else Algorithm.ECDSA_SECP256K1
    node = derive(Seed(bytes.fromhex(vector["seed"])), algorithm, _indices(vector["path"]))
    assert node.private_key.hex() == vector["private_key"]
    assert node.chain_code.hex() == vector["chain_code"]
    assert node.public_key.hex() == (
        vector["public_key"][2:] if algorithm is Algorithm.ED25519 else vector["public_key"]
    )


@pytest.mark.parametrize("vector", _vectors("bip44/accounts.json")["accounts"], ids=lambda v: v["path"])
def test_bip44_accounts(vector: dict[str, str]) -> None:
    seed = seed_of_mnemonic(Mnemonic(_vectors("bip44/accounts.json")["mnemonic"]))
    path = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, int(vector["path"].rpartition("/")[2]))
    assert str(path) == vector["path"]
    leaf = derive(seed, path.algorithm, path.indices())
    assert "0x" + leaf.private_key.hex() == vector["private_key"]
    assert checksum_address(address_of_public_key(leaf.public_key)) == vector["address"]


@pytest.mark.parametrize("vector", _vectors("bip44/paths.json"), ids=lambda v: v["path"])
def test_bip44_paths(vector: dict[str, Any]) -> None:
    path = AccountPath(Algorithm.ECDSA_SECP256K1, vector["account"], vector["change"], vector["index"])
    assert str(path) == vector["path"].replace(f"44'/{vector['coin_type']}'", "44'/60'")


def test_ed25519_paths_are_hardened_throughout() -> None:
    assert str(AccountPath(Algorithm.ED25519, 1, 2, 3)) == "m/44'/501'/1'/2'/3'"
    with pytest.raises(WalletError) as caught:
        derive(Seed(bytes(64)), Algorithm.ED25519, (44 + HARDENED, 0))
    assert caught.value.reason is Reason.INVALID_REQUEST


@pytest.mark.parametrize("number", [-1, HARDENED])
@pytest.mark.parametrize("field", ["account", "change", "index"])
def test_numbers_out_of_range_are_named(field: str, number: int) -> None:
    with pytest.raises(WalletError) as caught:
        AccountPath(Algorithm.ECDSA_SECP256K1, **{"account": 0, "change": 0, "index": 0, field: number})
    assert caught.value.details["field"] == field


@pytest.mark.parametrize("size", [0, 15, 17, 33])
def test_entropy_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WalletError) as caught:
        mnemonic_of_entropy(bytes(size))
    assert caught.value.details["field"] == "strength_bits"


def test_a_wrong_checksum_is_refused_without_quoting_the_words() -> None:
    with pytest.raises(WalletError) as caught:
        seed_of_mnemonic(Mnemonic("abandon " * 11 + "zoo"))
    assert "abandon" not in str(caught.value)


def test_an_extended_key_prints_no_secret() -> None:
    leaf = derive(Seed(bytes(range(64))), Algorithm.ECDSA_SECP256K1, ())
    assert repr(leaf) == f"ExtendedKey(public_key={leaf.public_key!r})"
