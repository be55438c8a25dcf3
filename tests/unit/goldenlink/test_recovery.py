"""The recovery key pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.recovery import encrypt_recovery
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.recovery import make_key_file, open_recovery

MNEMONIC = "legal winner thank year wave sausage worth useful legal winner thank yellow"


def test_only_the_key_opens_what_was_encrypted_to_it(tmp_path: Path) -> None:
    recipient = make_key_file(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    encrypted = "0x" + encrypt_recovery(MNEMONIC, "w-1", bytes.fromhex(recipient[2:])).hex()
    assert open_recovery(encrypted, "w-1", tmp_path / "key") == MNEMONIC
    make_key_file(tmp_path / "other")
    for wallet_id, key in (("w-2", "key"), ("w-1", "other")):
        with pytest.raises(Failure) as failed:
            open_recovery(encrypted, wallet_id, tmp_path / key)
        assert failed.value.exit_code is Exit.NEGATIVE


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    make_key_file(tmp_path / "key")
    before = (tmp_path / "key").read_text()
    with pytest.raises(Failure):
        make_key_file(tmp_path / "key")
    assert (tmp_path / "key").read_text() == before
