"""What clients send, checked as far as one request shows: unknown fields are refused, amounts are decimal strings.

Each broken rule is a PydanticCustomError whose type is the name of its Reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from protos.wallet.v1.common_pb2 import AccessListEntry, FeeOptions
from services.core import amounts
from services.core.addresses import parse_address
from services.core.canonical import MAX_INTEGER
from services.core.errors import Reason, WalletError

MAX_BATCH = 1_000
_MAX_ARGUMENT_DEPTH = 8
_MAX_DATA_TEXT = 2 + 2 * 128 * 1024
_DATA_SCHEMA = {"type": "string", "pattern": r"^0x([0-9a-fA-F]{2})*$", "maxLength": _MAX_DATA_TEXT}


def _rule(reason: Reason, rule: str, field: str | None = None) -> PydanticCustomError:
    # "{rule}" keeps braces in the rule from being read as a template.
    return PydanticCustomError(reason.name, "{rule}", {"rule": rule, **({"field": field} if field else {})})


def _checked(parse: Callable[[object, str], object]) -> BeforeValidator:
    """A validator that keeps the text and refuses what `parse` refuses."""

    def check(value: object) -> object:
        try:
            parse(value, "")
        except WalletError as error:
            raise _rule(error.reason, str(error.details["rule"])) from error
        return value

    return BeforeValidator(check)


def _check_data_size(value: object) -> object:
    if isinstance(value, str) and len(value) > _MAX_DATA_TEXT:
        raise _rule(Reason.INVALID_CALLDATA, "at most 128 KiB")
    return value


_DECIMAL = "(0|[1-9][0-9]*)"
Wei = Annotated[str, _checked(amounts.parse_wei), WithJsonSchema({"type": "string", "pattern": f"^{_DECIMAL}$"})]
Gas = Annotated[str, _checked(amounts.parse_gas), WithJsonSchema({"type": "string", "pattern": f"^{_DECIMAL}$"})]
ChainId = Annotated[
    str, _checked(amounts.parse_chain_id), WithJsonSchema({"type": "string", "pattern": "^eip155:[1-9][0-9]*$"})
]
AddressText = Annotated[
    str, _checked(parse_address), WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"})
]
HexBytes = Annotated[
    str, BeforeValidator(_check_data_size), Field(pattern=r"^0x([0-9a-fA-F]{2})*$"), WithJsonSchema(_DATA_SCHEMA)
]
Slot = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{64}$")]
ResourceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


def _check_argument(value: object, depth: int = 0) -> object:
    if isinstance(value, list) and depth < _MAX_ARGUMENT_DEPTH:
        for item in value:
            _check_argument(item, depth + 1)
        return value
    if isinstance(value, str | bool) or (isinstance(value, int) and abs(value) <= MAX_INTEGER):
        return value
    rule = f"text, booleans, whole numbers within ±(2**53 - 1) and lists, at most {_MAX_ARGUMENT_DEPTH} deep"
    raise _rule(Reason.INVALID_CALLDATA, rule)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class Call(_Strict):
    """A contract call by ABI signature."""

    signature: str = Field(max_length=1_024, examples=["transfer(address,uint256)"])
    arguments: Annotated[list[Any], BeforeValidator(_check_argument)] = Field(
        description="One per parameter; numbers past 2**53 as decimal strings, bytes as 0x-hex."
    )


class Erc20(_Strict):
    """A token transfer; `to` of the transfer receives the tokens."""

    token: AddressText
    amount: Wei = Field(description="In the token's smallest unit.")


class AccessListItem(_Strict):
    address: AddressText
    storage_keys: list[Slot] = []


_TYPES = {
    "legacy": FeeOptions.TRANSACTION_TYPE_LEGACY,
    "access_list": FeeOptions.TRANSACTION_TYPE_ACCESS_LIST,
    "dynamic_fee": FeeOptions.TRANSACTION_TYPE_DYNAMIC_FEE,
}


class TransferRequest(_Strict):
    """One transfer. The sender is `account_id`, or `from` with `chain_id`. The suite assigns the nonce."""

    account_id: ResourceId | None = None
    from_: AddressText | None = Field(default=None, alias="from")
    chain_id: ChainId | None = Field(default=None, description="CAIP-2; with account_id it may be left out.")
    to: AddressText | None = Field(default=None, description="Left out for a contract creation.")
    value_wei: Wei | None = Field(default=None, description="May be left out with data, call or erc20: 0.")
    data: HexBytes | None = None
    call: Call | None = None
    erc20: Erc20 | None = None
    type: Literal["legacy", "access_list", "dynamic_fee"] | None = None
    gas_limit: Gas | None = None
    gas_price_wei: Wei | None = None
    max_fee_per_gas_wei: Wei | None = None
    max_priority_fee_per_gas_wei: Wei | None = None
    access_list: list[AccessListItem] | None = Field(default=None, max_length=1_024)

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if (self.account_id is None) == (self.from_ is None):
            raise _rule(Reason.INVALID_REQUEST, "exactly one of account_id and from", "account_id")
        if self.from_ is not None and self.chain_id is None:
            raise _rule(Reason.INVALID_REQUEST, "is required beside from", "chain_id")
        payloads = [self.data, self.call, self.erc20]
        if sum(payload is not None for payload in payloads) > 1:
            raise _rule(Reason.INVALID_REQUEST, "at most one of data, call and erc20", "data")
        if self.to is None and self.data is None:
            raise _rule(Reason.INVALID_REQUEST, "is required; only a creation (data alone) has none", "to")
        if self.value_wei is None and all(payload is None for payload in payloads):
            raise _rule(Reason.INVALID_AMOUNT, "is required", "value_wei")
        if self.erc20 is not None and self.value_wei not in (None, "0"):
            raise _rule(Reason.INVALID_AMOUNT, "is 0 or left out with erc20", "value_wei")
        return self

    @property
    def fee_options(self) -> FeeOptions:
        options = FeeOptions(
            gas_price_wei=self.gas_price_wei,
            max_fee_per_gas_wei=self.max_fee_per_gas_wei,
            max_priority_fee_per_gas_wei=self.max_priority_fee_per_gas_wei,
            gas_limit=int(self.gas_limit) if self.gas_limit is not None else None,
        )
        if self.type is not None:
            options.type = _TYPES[self.type]
        for item in self.access_list or ():
            slots = [bytes.fromhex(slot[2:]) for slot in item.storage_keys]
            options.access_list.append(AccessListEntry(address=bytes.fromhex(item.address[2:]), storage_keys=slots))
        return options

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.call.arguments) if self.call is not None else "[]"


class TransferBatchRequest(_Strict):
    transfers: list[TransferRequest] = Field(min_length=1, max_length=MAX_BATCH)


class WalletRequest(_Strict):
    """A wallet. With an id of the caller's choice a repeated request makes no second one."""

    id: ResourceId | None = None
    # No control characters: PostgreSQL keeps no NUL, and a terminal is not to obey the others.
    name: str = Field(default="", max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
    strength_bits: Literal[128, 160, 192, 224, 256] = 256
    recovery_recipient: Slot | None = Field(
        default=None, description="X25519 public key (0x-hex) that the mnemonic is encrypted to (HPKE)."
    )


class ApprovalRequest(_Strict):
    terms_sha256: Slot = Field(description="`terms_sha256` of the transfer: what is decided about.")


class PolicyRequest(_Strict):
    document: str = Field(min_length=1, max_length=262_144, description="The policy, YAML.")


class AccountRequest(_Strict):
    chain_id: ChainId | None = Field(default=None, description="CAIP-2; required unless algorithm is ed25519.")
    algorithm: Literal["ecdsa_secp256k1", "ed25519"] = "ecdsa_secp256k1"
    account: int = Field(default=0, ge=0, lt=2**31, strict=True, description="BIP-44 account'.")
    change: int = Field(default=0, ge=0, lt=2**31, strict=True)
    index: int = Field(default=0, ge=0, lt=2**31, strict=True)

    @model_validator(mode="after")
    def _chain_fits(self) -> Self:
        if (self.chain_id is None) != (self.algorithm == "ed25519"):
            raise _rule(Reason.INVALID_REQUEST, "required for ecdsa_secp256k1, absent for ed25519", "chain_id")
        return self
