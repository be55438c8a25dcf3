"""From entropy to leaf keys: BIP-39 mnemonics and seeds, BIP-32 and SLIP-10 extended keys. Pure; it holds secrets.

Loading it costs half a second (bip-utils): in `keys` only the ceremony's process imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NewType

from bip_utils import (
    Bip32KeyError,
    Bip32Slip10Ed25519,
    Bip32Slip10Secp256k1,
    Bip39MnemonicGenerator,
    Bip39MnemonicValidator,
    Bip39SeedGenerator,
)

from services.core.errors import Reason, WalletError, refuse
from services.core.paths import HARDENED, Algorithm

Mnemonic = NewType("Mnemonic", str)
Seed = NewType("Seed", bytes)

ENTROPY_BITS = (128, 160, 192, 224, 256)  # BIP-39, "Generating the mnemonic"

_CURVES = {Algorithm.ECDSA_SECP256K1: Bip32Slip10Secp256k1, Algorithm.ED25519: Bip32Slip10Ed25519}


@dataclass(frozen=True)
class ExtendedKey:
    """A node of the tree. `public_key` is 33 bytes SEC1 compressed, or 32 bytes Ed25519; the rest is secret."""

    private_key: bytes = field(repr=False)
    chain_code: bytes = field(repr=False)
    public_key: bytes


def mnemonic_of_entropy(entropy: bytes) -> Mnemonic:
    """12, 15, 18, 21 or 24 English words of 16, 20, 24, 28 or 32 bytes.

    Raises:
        WalletError: INVALID_REQUEST for another size.
    Source: BIP-39, "Generating the mnemonic".
    """
    if len(entropy) * 8 not in ENTROPY_BITS:
        refuse("strength_bits", "is 128, 160, 192, 224 or 256")
    return Mnemonic(str(Bip39MnemonicGenerator().FromEntropy(entropy)))


def seed_of_mnemonic(mnemonic: Mnemonic, passphrase: str = "") -> Seed:
    """64 bytes: PBKDF2-HMAC-SHA512, 2,048 rounds.

    Raises:
        WalletError: INVALID_REQUEST if a word is unknown or the checksum is wrong; the message names no word.
    Source: BIP-39, "From mnemonic to seed".
    """
    if not Bip39MnemonicValidator().IsValid(mnemonic):
        refuse("mnemonic", "is BIP-39 English words with a valid checksum")
    return Seed(Bip39SeedGenerator(mnemonic).Generate(passphrase))


def derive(seed: Seed, algorithm: Algorithm, indices: Sequence[int]) -> ExtendedKey:
    """The node at `indices` below the master key, hardened where an index is 2**31 or more.

    Raises:
        WalletError: INVALID_REQUEST for an index that is not hardened under Ed25519, which has no such children;
            INTERNAL in the 2**-127 case that a secp256k1 node is no key: the caller takes another index.
    Source: BIP-32, "Private parent key → private child key"; SLIP-10 for Ed25519.
    """
    if algorithm is Algorithm.ED25519 and any(index < HARDENED for index in indices):
        refuse("derivation_path", "is hardened throughout for Ed25519")
    try:
        node = _CURVES[algorithm].FromSeed(seed)
        for index in indices:
            node = node.ChildKey(index)
    except Bip32KeyError:
        # Its text may quote the key.
        raise WalletError(Reason.INTERNAL, "no key at this derivation path") from None
    public_key = node.PublicKey().RawCompressed().ToBytes()
    return ExtendedKey(
        private_key=node.PrivateKey().Raw().ToBytes(),
        chain_code=node.ChainCode().ToBytes(),
        # bip-utils prints Ed25519 keys as SLIP-10 does, with a leading zero byte that RFC 8032 has not.
        public_key=public_key[1:] if algorithm is Algorithm.ED25519 else public_key,
    )
