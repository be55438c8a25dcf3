"""A PKCS#11 token: one logged-in session, keys by label, errors by meaning. It knows no wallet and no chain.

Blocking: async code calls it through `asyncio.to_thread` or keeps it in a child process. One `TokenSession` a process:
SoftHSM is initialised without locks of its own, and reopening finalises the library for every session in the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import pkcs11
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import MGF, Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass, exceptions
from pkcs11.constants import DEFAULT

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.runtime.settings import TokenSettings, read_secret

T = TypeVar("T")

KEY_ID_SIZE = 16
NONCE_SIZE = 12  # SP 800-38D §5.2.1.1: 96 bits, drawn from the token, at most 2**32 messages a key
TAG_BITS = 128
TRANSPORT_KEY_BITS = 2048
# RFC 8410 §3: OID 1.3.101.112 in DER. SoftHSM takes the OID where PKCS#11 3.0 would also allow a curve name.
_ED25519_PARAMS = bytes.fromhex("06032b6570")
# The only hash that SoftHSM takes for OAEP. OAEP does not rest on collision resistance (RFC 8017 §7.1).
_OAEP_SHA1 = (Mechanism.SHA_1, MGF.SHA1, None)


class ErrorOrigin(StrEnum):
    """Which layer failed: the `origin` of a WalletError's details, for `wallet.error.origin`."""

    SERVICE = "service"  # we asked for what PKCS#11 does not allow
    DRIVER = "driver"  # the library: not loadable, or an error without a meaning
    SESSION = "session"  # closed, logged out, or a handle that died with it
    TOKEN = "token"  # noqa: S105  # missing, locked, broken, or it refused the PIN


@dataclass(frozen=True)
class TokenIdentity:
    """What evidence says about the token."""

    label: str
    serial: str
    library: str


class TokenKey(NamedTuple):
    """A key that stays in the token."""

    key_id: bytes  # CKA_ID
    public_key: bytes  # empty for a secret key


@dataclass(frozen=True)
class KeyHandle:
    """A session object of the token. It dies with its session."""

    key: Any
    session_number: int


class TokenSession:
    """A logged-in read-write session that reopens by itself after it was lost.

    Every method may raise WalletError: TOKEN_UNAVAILABLE (library or token missing, locked, session lost) or
    TOKEN_PIN_INCORRECT, both with `origin` in the details; INTERNAL with origin `service` for a call that the token
    can never accept. A call on keys named by label is tried once more in a new session; a `KeyHandle` cannot be, so
    after TOKEN_UNAVAILABLE check `holds` and unwrap again.
    """

    def __init__(self, settings: TokenSettings) -> None:
        self._library_path = settings.pkcs11_library
        self._label = settings.token_label
        self._pin_file: Path = settings.token_pin_file
        self._lock = threading.Lock()
        self._session: Any = None
        self._session_number = 0
        self._identity: TokenIdentity | None = None
        self._found: dict[tuple[ObjectClass, str, bytes | None], Any] = {}
        self._refused_pin: str | None = None

    # The session

    def open(self) -> TokenIdentity:
        """Log in now, so that a wrong PIN or a missing token is known before the first request."""
        self._call(lambda session: None)
        assert self._identity is not None
        return self._identity

    def close(self) -> None:
        """Log out. The next call would open again."""
        with self._lock:
            self._drop()

    def holds(self, handle: KeyHandle) -> bool:
        """Whether the session that `handle` belongs to is still the open one."""
        return self._session is not None and handle.session_number == self._session_number

    def random(self, size: int) -> bytes:
        """`size` bytes from the token's generator."""
        return self._call(lambda session: bytes(session.generate_random(size * 8)))

    # Sealing: AES-256-GCM under a key that never leaves

    def sealing_key(self, label: str) -> TokenKey:
        """The AES key `label`, made if there is none; of two processes that ask at once, each may make one."""
        return self._call(lambda session: TokenKey(bytes(self._aes_key(session, label)[Attribute.ID]), b""))

    def encrypt(self, label: str, key_id: bytes, plaintext: bytes, associated_data: bytes) -> bytes:
        """key id (16) ‖ nonce (12) ‖ ciphertext ‖ tag (16), under that AES key.

        Raises:
            WalletError: KEY_NOT_FOUND if the token lacks the key.
        """

        def act(session: Any) -> bytes:
            key = self._find(session, ObjectClass.SECRET_KEY, label, key_id)
            nonce = bytes(session.generate_random(NONCE_SIZE * 8))
            sealed = key.encrypt(
                plaintext,
                mechanism=Mechanism.AES_GCM,
                mechanism_param=GCMParams(nonce, associated_data, TAG_BITS),
            )
            return bytes(key[Attribute.ID]) + nonce + bytes(sealed)

        return self._call(act)

    def decrypt(self, label: str, sealed: bytes, associated_data: bytes) -> bytes:
        """The plaintext of `encrypt`.

        Raises:
            WalletError: KEY_NOT_FOUND if the token lacks the key; INTERNAL if the text or the associated data is not
                what was encrypted.
        """
        key_id, nonce, text = (
            sealed[:KEY_ID_SIZE],
            sealed[KEY_ID_SIZE : KEY_ID_SIZE + NONCE_SIZE],
            sealed[KEY_ID_SIZE + NONCE_SIZE :],
        )

        def act(session: Any) -> bytes:
            key = self._find(session, ObjectClass.SECRET_KEY, label, key_id)
            try:
                return bytes(
                    key.decrypt(
                        text,
                        mechanism=Mechanism.AES_GCM,
                        mechanism_param=GCMParams(nonce, associated_data, TAG_BITS),
                    )
                )
            # SoftHSM answers a wrong tag with GeneralError, other tokens as PKCS#11 says.
            except (exceptions.GeneralError, exceptions.EncryptedDataInvalid, exceptions.EncryptedDataLenRange):
                raise WalletError(Reason.INTERNAL, "sealed text does not authenticate", label=label) from None

        return self._call(act)

    def _aes_key(self, session: Any, label: str) -> Any:
        def generate() -> Any:
            return session.generate_key(
                KeyType.AES,
                256,
                id=bytes(session.generate_random(KEY_ID_SIZE * 8)),
                label=label,
                store=True,
                capabilities=MechanismFlag.ENCRYPT | MechanismFlag.DECRYPT,
                template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )

        return self._find_or_make(session, ObjectClass.SECRET_KEY, label, generate)

    # Transport: RSA pair whose private half only unwraps

    def transport_public_key(self, label: str) -> bytes:
        """SubjectPublicKeyInfo (DER) of the RSA-2048 pair `label`, made at its first use (up to a second)."""

        def act(session: Any) -> bytes:
            key = self._transport_key(session, label)
            modulus, exponent = key[Attribute.MODULUS], key[Attribute.PUBLIC_EXPONENT]
            numbers = RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
            return numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

        return self._call(act)

    def unwrap_leaf(self, label: str, wrapped_aes_key: bytes, wrapped_private_key: bytes) -> KeyHandle:
        """Bring a secp256k1 private key into the token as a session object, sensitive and not extractable.

        `wrapped_aes_key`: AES-256 key by RSA-OAEP (SHA-1) to the pair `label`; `wrapped_private_key`: PKCS#8 under
        that key by RFC 5649. Neither is ever plaintext outside the token.

        Raises:
            WalletError: KEY_NOT_FOUND if the token cannot unwrap it: wrapped to another pair, or damaged.
        """

        def act(session: Any) -> KeyHandle:
            transport = self._transport_key(session, label)
            try:
                aes_key = transport.unwrap_key(
                    ObjectClass.SECRET_KEY,
                    KeyType.AES,
                    wrapped_aes_key,
                    mechanism=Mechanism.RSA_PKCS_OAEP,
                    mechanism_param=_OAEP_SHA1,
                    template=_session_key(Attribute.UNWRAP),
                )
                try:
                    key = aes_key.unwrap_key(
                        ObjectClass.PRIVATE_KEY,
                        KeyType.EC,
                        wrapped_private_key,
                        mechanism=Mechanism.AES_KEY_WRAP_PAD,
                        # python-pkcs11 adds these three for every key; SoftHSM refuses them on a private key.
                        template=_session_key(Attribute.SIGN)
                        | {Attribute.ENCRYPT: DEFAULT, Attribute.WRAP: DEFAULT, Attribute.VERIFY: DEFAULT},
                    )
                finally:
                    aes_key.destroy()
            except _UNWRAP_REFUSALS:
                raise WalletError(
                    Reason.KEY_NOT_FOUND, "the token cannot unwrap the leaf key", origin=ErrorOrigin.TOKEN
                ) from None
            return KeyHandle(key, self._session_number)

        return self._call(act)

    def sign_digest(self, handle: KeyHandle, digest: Digest) -> bytes:
        """r ‖ s (64 bytes) over secp256k1, as the token gives it: s may be high and the recovery id is unknown."""
        return self._call_on(handle, lambda key: bytes(key.sign(digest, mechanism=Mechanism.ECDSA)))

    def destroy(self, handle: KeyHandle) -> None:
        """Remove a session object, if its session is still open."""
        if self.holds(handle):
            self._call_on(handle, lambda key: key.destroy())

    def _transport_key(self, session: Any, label: str) -> Any:
        def generate() -> Any:
            _, private_key = session.generate_keypair(
                KeyType.RSA,
                TRANSPORT_KEY_BITS,
                id=bytes(session.generate_random(KEY_ID_SIZE * 8)),
                label=label,
                store=True,
                public_template={Attribute.WRAP: True, Attribute.ENCRYPT: False, Attribute.VERIFY: False},
                private_template=_stored_private_key(Attribute.UNWRAP)
                | {Attribute.DECRYPT: False, Attribute.SIGN: False},
            )
            return private_key

        return self._find_or_make(session, ObjectClass.PRIVATE_KEY, label, generate)

    # Notes: an Ed25519 pair that signs messages

    def note_key(self, label: str) -> TokenKey:
        """The Ed25519 pair `label`, made if there is none, like `sealing_key`.

        The public key has 32 bytes (RFC 8032).
        """

        def act(session: Any) -> TokenKey:
            key_id = bytes(self._ed25519_key(session, label)[Attribute.ID])
            public_key = self._find(session, ObjectClass.PUBLIC_KEY, label, key_id)
            # CKA_EC_POINT is the point in a DER OCTET STRING (SoftHSM) or bare; the point is its last 32 bytes.
            return TokenKey(key_id, bytes(public_key[Attribute.EC_POINT])[-32:])

        return self._call(act)

    def sign_ed25519(self, label: str, key_id: bytes, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032, pure) of `message` under that pair.

        Raises:
            WalletError: KEY_NOT_FOUND if the token lacks it.
        """

        def act(session: Any) -> bytes:
            key = self._find(session, ObjectClass.PRIVATE_KEY, label, key_id)
            return bytes(key.sign(message, mechanism=Mechanism.EDDSA))

        return self._call(act)

    def holds_pair(self, label: str, key_id: bytes) -> bool:
        """Whether the token has the private half of that pair."""

        def act(session: Any) -> bool:
            try:
                self._find(session, ObjectClass.PRIVATE_KEY, label, key_id)
            except WalletError:
                return False
            return True

        return self._call(act)

    def _ed25519_key(self, session: Any, label: str) -> Any:
        def generate() -> Any:
            parameters = session.create_domain_parameters(
                KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: _ED25519_PARAMS}, local=True
            )
            _, private_key = parameters.generate_keypair(
                mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
                id=bytes(session.generate_random(KEY_ID_SIZE * 8)),
                label=label,
                store=True,
                private_template=_stored_private_key(Attribute.SIGN),
            )
            return private_key

        return self._find_or_make(session, ObjectClass.PRIVATE_KEY, label, generate)

    # Inside

    def _find(self, session: Any, object_class: ObjectClass, label: str, key_id: bytes) -> Any:
        name = (object_class, label, key_id)
        if name not in self._found:
            keys = _search(session, {Attribute.CLASS: object_class, Attribute.LABEL: label, Attribute.ID: key_id})
            if not keys:
                raise WalletError(Reason.KEY_NOT_FOUND, "the token does not hold this key", label=label)
            self._found[name] = keys[0]
        return self._found[name]

    def _find_or_make(self, session: Any, object_class: ObjectClass, label: str, make: Callable[[], Any]) -> Any:
        name = (object_class, label, None)
        if name not in self._found:
            template = {Attribute.CLASS: object_class, Attribute.LABEL: label}
            # Of several, every process settles on the same one.
            present = sorted(_search(session, template), key=lambda key: bytes(key[Attribute.ID]))
            self._found[name] = present[0] if present else make()
        return self._found[name]

    def _call(self, act: Callable[[Any], T]) -> T:
        with self._lock:
            if self._session is not None:
                try:
                    return act(self._session)
                except exceptions.PKCS11Error as error:
                    if _origin(error) is ErrorOrigin.SERVICE:
                        _refuse(error)
                    self._drop()
            try:
                return act(self._open())
            except exceptions.PKCS11Error as error:
                self._drop()
                _refuse(error)

    def _call_on(self, handle: KeyHandle, act: Callable[[Any], T]) -> T:
        with self._lock:
            if not self.holds(handle):
                raise WalletError(Reason.TOKEN_UNAVAILABLE, "the key's session is lost", origin=ErrorOrigin.SESSION)
            try:
                return act(handle.key)
            except exceptions.PKCS11Error as error:
                if _origin(error) is not ErrorOrigin.SERVICE:
                    self._drop()
                _refuse(error)

    def _open(self) -> Any:
        pin = self._read_pin()
        if pin == self._refused_pin:
            # Tokens lock after a few wrong PINs: never offer the same one twice.
            raise WalletError(Reason.TOKEN_PIN_INCORRECT, Reason.TOKEN_PIN_INCORRECT.meaning, origin=ErrorOrigin.TOKEN)
        library = pkcs11.lib(str(self._library_path))
        token = library.get_token(token_label=self._label)
        try:
            self._session = token.open(rw=True, user_pin=pin)
        except _PIN_REFUSALS:
            self._refused_pin = pin
            raise
        self._session_number += 1
        major, minor = library.library_version
        self._identity = TokenIdentity(
            label=token.label,
            serial=token.serial.decode("ascii", "replace"),
            library=f"{library.library_description} {major}.{minor}",
        )
        return self._session

    def _read_pin(self) -> str:
        try:
            return read_secret(self._pin_file)
        except OSError:
            raise WalletError(
                Reason.TOKEN_UNAVAILABLE, "the PIN file cannot be read", origin=ErrorOrigin.SERVICE
            ) from None

    def _drop(self) -> None:
        self._session = None
        self._found.clear()
        try:
            library = pkcs11.lib(str(self._library_path))
            # Closes every session, and makes the next C_Initialize look for tokens again.
            library.finalize()
        except exceptions.PKCS11Error:
            # It is gone already, which is what was wanted.
            return


def _search(session: Any, template: dict[Attribute, Any]) -> list[Any]:
    # A search that a lost session refuses to start complains from its destructor, past every except clause: meet the
    # lost session before. For the same reason the search is read to its end.
    session.generate_random(8)
    return list(session.get_objects(template))


def _session_key(use: Attribute) -> dict[Attribute, Any]:
    uses = (Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN, Attribute.VERIFY)
    return dict.fromkeys(uses, False) | {
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        use: True,
    }


def _stored_private_key(use: Attribute) -> dict[Attribute, Any]:
    return {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, use: True}


_PIN_REFUSALS = (exceptions.PinIncorrect, exceptions.PinInvalid, exceptions.PinLenRange)

# What a wrapped key that is not for this token, or is damaged, is answered with. GeneralError and FunctionFailed are
# SoftHSM's words for it.
_UNWRAP_REFUSALS = (
    exceptions.WrappedKeyInvalid,
    exceptions.WrappedKeyLenRange,
    exceptions.EncryptedDataInvalid,
    exceptions.EncryptedDataLenRange,
    exceptions.GeneralError,
    exceptions.FunctionFailed,
    exceptions.ArgumentsBad,
)

_SESSION_ERRORS = (
    exceptions.SessionClosed,
    exceptions.SessionCount,
    exceptions.SessionHandleInvalid,
    exceptions.UserNotLoggedIn,
    exceptions.KeyHandleInvalid,
    exceptions.ObjectHandleInvalid,
    exceptions.UnwrappingKeyHandleInvalid,
    exceptions.OperationActive,
    exceptions.OperationNotInitialized,
)

_TOKEN_ERRORS = (
    *_PIN_REFUSALS,
    exceptions.PinExpired,
    exceptions.PinLocked,
    exceptions.UserPinNotInitialized,
    exceptions.NoSuchToken,
    exceptions.MultipleTokensReturned,
    exceptions.TokenNotPresent,
    exceptions.TokenNotRecognised,
    exceptions.TokenWriteProtected,
    exceptions.SlotIDInvalid,
    exceptions.DeviceError,
    exceptions.DeviceMemory,
    exceptions.DeviceRemoved,
    exceptions.RandomNoRNG,
)

_DRIVER_ERRORS = (
    exceptions.GeneralError,
    exceptions.FunctionFailed,
    exceptions.FunctionCancelled,
    exceptions.FunctionRejected,
    exceptions.HostMemory,
)


def _origin(error: exceptions.PKCS11Error) -> ErrorOrigin:
    if isinstance(error, _SESSION_ERRORS):
        return ErrorOrigin.SESSION
    if isinstance(error, _TOKEN_ERRORS):
        return ErrorOrigin.TOKEN
    # The bare class is what python-pkcs11 raises for a library that does not load.
    if isinstance(error, _DRIVER_ERRORS) or type(error) is exceptions.PKCS11Error:
        return ErrorOrigin.DRIVER
    return ErrorOrigin.SERVICE


def _refuse(error: exceptions.PKCS11Error) -> NoReturn:
    # The library's own text may name paths: only the class name is told.
    cause, origin = type(error).__name__, _origin(error)
    if isinstance(error, _PIN_REFUSALS):
        raise WalletError(
            Reason.TOKEN_PIN_INCORRECT, Reason.TOKEN_PIN_INCORRECT.meaning, origin=origin, cause=cause
        ) from None
    if origin is ErrorOrigin.SERVICE:
        raise WalletError(Reason.INTERNAL, "the token does not accept this call", origin=origin, cause=cause) from error
    raise WalletError(Reason.TOKEN_UNAVAILABLE, Reason.TOKEN_UNAVAILABLE.meaning, origin=origin, cause=cause) from None
