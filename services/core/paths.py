"""BIP-44 derivation paths of accounts, and the algorithms that they are derived for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from services.core.errors import refuse

HARDENED = 1 << 31  # BIP-32: indices from 2**31 are hardened
PURPOSE = 44


class Algorithm(Enum):
    """How an account signs. The value is its name in databases and entries.

    `coin_type` is SLIP-44's: 60 Ether; 501 Solana, the coin that made SLIP-10 Ed25519 common.
    """

    ECDSA_SECP256K1 = "ecdsa_secp256k1"
    ED25519 = "ed25519"

    @property
    def coin_type(self) -> int:
        return 60 if self is Algorithm.ECDSA_SECP256K1 else 501


@dataclass(frozen=True)
class AccountPath:
    """m/44'/coin_type'/account'/change/index, each number below 2**31.

    Ed25519 has hardened children only (SLIP-10), so there all five levels are hardened.

    Raises:
        WalletError: INVALID_REQUEST naming the number that is out of range.
    """

    algorithm: Algorithm
    account: int
    change: int
    index: int

    def __post_init__(self) -> None:
        for field, value in (("account", self.account), ("change", self.change), ("index", self.index)):
            if not 0 <= value < HARDENED:
                refuse(field, "is a whole number from 0 to 2**31 - 1")

    def indices(self) -> tuple[int, ...]:
        """The five child indices, the hardened ones with 2**31 added."""
        last = HARDENED if self.algorithm is Algorithm.ED25519 else 0
        return (
            PURPOSE + HARDENED,
            self.algorithm.coin_type + HARDENED,
            self.account + HARDENED,
            self.change + last,
            self.index + last,
        )

    def __str__(self) -> str:
        return format_path(self.indices())


def format_path(indices: tuple[int, ...]) -> str:
    """BIP-32 notation with an apostrophe for a hardened index: "m/44'/60'/0'/0/0"."""
    steps = (f"{index - HARDENED}'" if index >= HARDENED else str(index) for index in indices)
    return "/".join(("m", *steps))
