"""PKCS#11 tokens: a SoftHSM token directory a service, each with random PINs in files, so that services share none.

    python -m tools.stack.tokens LIBRARY LABEL SO_PIN_FILE PIN_FILE

initialises one, in a process of its own: SoftHSM reads its configuration once a process. PINs go by file: arguments are
public.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tools.stack.files import new_password, write_private
from tools.stack.processes import StackError

SOFTHSM_LIBRARY = Path("/usr/lib/softhsm/libsofthsm2.so")
_SOURCE_TREE = Path(__file__).resolve().parents[2]

# PKCS#11 v2.40, pkcs11t.h.
_CKF_SERIAL_SESSION, _CKF_RW_SESSION = 0x4, 0x2
_CKU_SO = 0
_LABEL_BYTES = 32


@dataclass(frozen=True)
class ExternalTokens:
    """Tokens that their operator initialised, labelled `keys`, `signer` and `evidence` (and `signer-1`, …)."""

    library: Path
    # `<label>.pin`: the user's PIN of each.
    pin_directory: Path
    # SOFTHSM2_CONF, where the library is SoftHSM.
    configuration: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ExternalTokens | None:
        """None when WALLET_PKCS11_LIBRARY is not set.

        Raises:
            StackError: it is no file, or WALLET_TOKEN_PIN_DIR no directory.
        """
        if not environment.get("WALLET_PKCS11_LIBRARY"):
            return None
        # Absolute: services run in another directory.
        library = Path(environment["WALLET_PKCS11_LIBRARY"]).resolve()
        if not library.is_file():
            raise StackError(f"WALLET_PKCS11_LIBRARY: there is no file {library}")
        pins = environment.get("WALLET_TOKEN_PIN_DIR")
        if not pins or not Path(pins).is_dir():
            raise StackError("WALLET_PKCS11_LIBRARY is set: WALLET_TOKEN_PIN_DIR names the directory of the PIN files")
        configuration = environment.get("SOFTHSM2_CONF")
        return cls(library, Path(pins).resolve(), Path(configuration).resolve() if configuration else None)


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
    token = Token(SOFTHSM_LIBRARY, label, pin_file, configuration)
    _run_apart("tools.stack.tokens", token, so_pin_file, pin_file)
    return token


def clone_token(token: Token, directory: Path) -> Token:
    """The same token, keys and PINs included, in another directory, as tokens of a cloning domain have the same keys.

    Processes cannot share a directory: SoftHSM rewrites the token's file at each login, and who looks meanwhile finds
    no token. Nobody logs in while this copies.
    """
    assert token.configuration is not None
    source = token.configuration.parent
    shutil.copytree(source, directory)
    configuration = write_private(
        directory / token.configuration.name,
        token.configuration.read_text(encoding="utf-8").replace(str(source), str(directory)),
    )
    return replace(token, pin_file=directory / token.pin_file.name, configuration=configuration)


def existing_token(external: ExternalTokens, label: str) -> Token:
    """A token that its operator initialised. It is opened once as its service will; keys in it are the service's care.

    Raises:
        StackError: the library does not load, has no such token, or the token refuses its PIN.
    """
    pin_file = external.pin_directory / f"{label}.pin"
    if not pin_file.is_file():
        raise StackError(f"WALLET_PKCS11_LIBRARY is set: put the PIN of token '{label}' in {pin_file}")
    token = Token(external.library, label, pin_file, external.configuration)
    _run_apart("tools.stack.token_opening", token, pin_file)
    return token


def _run_apart(module: str, token: Token, *pin_files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, str(token.library), token.label, *map(str, pin_files)],
        env={"PATH": os.defpath, **token.environment()},
        cwd=_SOURCE_TREE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise StackError(f"token '{token.label}' of {token.library}: {said[-1]}")


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
    try:
        _initialise(*(Path(sys.argv[1]), sys.argv[2]), *(Path(file).read_bytes().strip() for file in sys.argv[3:]))
    except StackError as failure:
        sys.exit(str(failure))
