"""PKCS#11 tokens: a SoftHSM token directory a service, each with random PINs in files, so that services share none."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.stack.files import new_password, write_private
from tools.stack.processes import StackError

SOFTHSM_LIBRARY = Path("/usr/lib/softhsm/libsofthsm2.so")

# PKCS#11 v2.40, pkcs11t.h.
_CKF_SERIAL_SESSION, _CKF_RW_SESSION = 0x4, 0x2
_CKU_SO = 0
_LABEL_BYTES = 32


@dataclass(frozen=True)
class Token:
    """What a service needs to open its token."""

    library: Path
    label: str
    pin_file: Path
    # SOFTHSM2_CONF; None where the library is configured by its own means.
    configuration: Path | None

    def environment(self) -> dict[str, str]:
        variables = {
            "WALLET_PKCS11_LIBRARY": str(self.library),
            "WALLET_TOKEN_LABEL": self.label,
            "WALLET_TOKEN_PIN_FILE": str(self.pin_file),
        }
        if self.configuration is not None:
            variables["SOFTHSM2_CONF"] = str(self.configuration)
        return variables


def create_softhsm_token(directory: Path, label: str) -> Token:
    """Initialise a token in a directory of its own. The security officer's PIN stays beside the user's.

    Raises:
        StackError: SoftHSM is not installed, or refuses.
    """
    if not SOFTHSM_LIBRARY.exists():
        raise StackError(f"SoftHSM is not installed ({SOFTHSM_LIBRARY}): run 'make setup'")
    (directory / "tokens").mkdir(mode=0o700, parents=True)
    configuration = write_private(
        directory / "softhsm2.conf",
        f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n",
    )
    pin_file = write_private(directory / "pin", new_password() + "\n")
    so_pin_file = write_private(directory / "so-pin", new_password() + "\n")
    # A process of its own: SoftHSM reads its configuration once a process. PINs go by file: arguments are public.
    done = subprocess.run(
        [sys.executable, "-m", "tools.stack.tokens", str(SOFTHSM_LIBRARY), label, str(so_pin_file), str(pin_file)],
        env={"PATH": os.defpath, "SOFTHSM2_CONF": str(configuration)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"token {label}: {done.stderr.strip().splitlines()[-1:]}")
    return Token(SOFTHSM_LIBRARY, label, pin_file, configuration)


def existing_token(library: Path, label: str, environment: Mapping[str, str]) -> Token:
    """A token that its operator initialised: labelled as the service, PIN in `$WALLET_TOKEN_PIN_DIR/<service>.pin`.

    Raises:
        StackError: the PIN file is missing.
    """
    pin_file = Path(environment.get("WALLET_TOKEN_PIN_DIR", "")) / f"{label}.pin"
    if not pin_file.is_file():
        raise StackError(
            f"WALLET_PKCS11_LIBRARY is set: put the PIN of token '{label}' in $WALLET_TOKEN_PIN_DIR/{label}.pin"
        )
    configuration = environment.get("SOFTHSM2_CONF")
    return Token(library, label, pin_file.resolve(), Path(configuration) if configuration else None)


def _initialise(library: Path, label: str, so_pin: bytes, pin: bytes) -> None:
    """C_InitToken and C_InitPIN on the first slot, which python-pkcs11 does not offer."""
    module = ctypes.CDLL(str(library))

    def call(function: str, *arguments: object) -> None:
        result = getattr(module, function)(*arguments)
        if result != 0:
            raise StackError(f"{function} answered 0x{result:x}")

    slot, count, session = ctypes.c_ulong(), ctypes.c_ulong(1), ctypes.c_ulong()
    call("C_Initialize", None)
    call("C_GetSlotList", ctypes.c_ubyte(0), ctypes.byref(slot), ctypes.byref(count))
    call("C_InitToken", slot, so_pin, ctypes.c_ulong(len(so_pin)), label.encode().ljust(_LABEL_BYTES))
    # An initialised token gets a slot number of its own.
    count = ctypes.c_ulong(2)
    slots = (ctypes.c_ulong * 2)()
    call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
    flags = ctypes.c_ulong(_CKF_SERIAL_SESSION | _CKF_RW_SESSION)
    call("C_OpenSession", ctypes.c_ulong(slots[0]), flags, None, None, ctypes.byref(session))
    call("C_Login", session, ctypes.c_ulong(_CKU_SO), so_pin, ctypes.c_ulong(len(so_pin)))
    call("C_InitPIN", session, pin, ctypes.c_ulong(len(pin)))
    call("C_Finalize", None)


if __name__ == "__main__":
    _initialise(
        Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_bytes().strip(), Path(sys.argv[4]).read_bytes().strip()
    )
