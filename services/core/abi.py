"""Contract calls from an ABI signature and JSON arguments. The coding itself is the eth-abi library's.

JSON forms: addresses 0x hex (EIP-55 where mixed case), integers as JSON integers or decimal strings, bool, string,
bytes as 0x hex, arrays and tuples as lists.
Source: Solidity's Contract ABI Specification.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeAlias

from eth_abi.abi import default_codec
from eth_abi.exceptions import ParseError
from eth_abi.grammar import TupleType, parse

from services.core.addresses import Address, parse_address
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError
from services.core.transactions import MAX_DATA_BYTES

MAX_SIGNATURE_CHARACTERS = 1024
# The deepest nesting of tuples and arrays together; deeper only serves to exhaust a parser.
MAX_NESTING = 8

_SIGNATURE = re.compile(r"([A-Za-z_$][A-Za-z0-9_$]*)(\([A-Za-z0-9_$(),\[\]]*\))")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,77})")
_HEX = re.compile(r"0x([0-9a-fA-F]{2})*")

# eth-abi's parsed types; the library's annotations do not tell basic types from tuples.
_Type: TypeAlias = Any


def selector(signature: str) -> bytes:
    """The 4 bytes that name a function, from its canonical signature such as `transfer(address,uint256)`.

    Raises:
        WalletError: INVALID_CALLDATA if the signature is malformed or not canonical.
    """
    return _parse_signature(signature)[0]


def encode_call(signature: str, arguments: list[object]) -> bytes:
    """Call data: the selector and the encoded arguments.

    Raises:
        WalletError: INVALID_CALLDATA with `rule`, and `index` of the argument that breaks it; also above 128 KiB.
    """
    function, types = _parse_signature(signature)
    if len(arguments) != len(types):
        raise _invalid("a wrong number of arguments", rule=f"{len(types)} arguments, as in the signature")
    values = []
    for index, (abi_type, argument) in enumerate(zip(types, arguments, strict=True)):
        try:
            values.append(_value(abi_type, argument))
        except ValueError as error:
            raise _invalid(f"argument {index} does not fit its type", rule=str(error), index=index) from error
    data = function + default_codec.encode([abi_type.to_type_str() for abi_type in types], values)
    if len(data) > MAX_DATA_BYTES:
        raise _invalid("call data is too large", rule="at most 128 KiB")
    return data


def erc20_transfer(to: Address, amount: int) -> bytes:
    """Call data of ERC-20's transfer; `amount` counts the token's smallest unit.

    Raises:
        WalletError: INVALID_CALLDATA if `amount` is outside 0 … 2**256-1.
    """
    return encode_call("transfer(address,uint256)", ["0x" + to.hex(), amount])


@lru_cache(maxsize=1024)
def _parse_signature(signature: str) -> tuple[bytes, tuple[_Type, ...]]:
    """Selector and argument types of a canonical signature."""
    match = _SIGNATURE.fullmatch(signature) if len(signature) <= MAX_SIGNATURE_CHARACTERS else None
    if match is None:
        raise _invalid("not a function signature", rule="name(type,…) without spaces, at most 1024 characters")
    # The library's parser recurses into parentheses; arrays are counted by `_check_type`.
    depths = accumulate((character == "(") - (character == ")") for character in match[2])
    if max(depths) > MAX_NESTING:
        raise _invalid("the signature nests too deep", rule=f"at most {MAX_NESTING} levels")
    if match[2] == "()":
        return keccak256(signature.encode("ascii"))[:4], ()
    try:
        arguments: _Type = parse(match[2])
        _check_type(arguments, 0)
    except (ParseError, ValueError) as error:
        rule = f"canonical address, bool, bytes, bytesN, intN, string, uintN, tuples and arrays, {MAX_NESTING} levels"
        raise _invalid("the signature has a wrong type", rule=rule) from error
    return keccak256(signature.encode("ascii"))[:4], tuple(arguments.components)


def _check_type(abi_type: _Type, depth: int) -> None:
    """Refuse what nests too deep, has no canonical name (`uint`, `bool8`) or no support in Solidity (`fixed128x18`).

    Raises:
        ValueError: the type, at `depth` levels below the signature, is one of these.
    """
    abi_type.validate()
    depth += len(abi_type.arrlist or ()) + isinstance(abi_type, TupleType)
    if depth > MAX_NESTING:
        raise ValueError(depth)
    if isinstance(abi_type, TupleType):
        for component in abi_type.components:
            _check_type(component, depth)
    elif abi_type.base not in ("bytes", "int", "uint") and (
        abi_type.base not in ("address", "bool", "string") or abi_type.sub is not None
    ):
        raise ValueError(abi_type.base)


def _value(abi_type: _Type, argument: object) -> object:
    """The eth-abi value of a JSON argument. Raises: ValueError with the rule that it breaks."""
    if abi_type.is_array:
        size = abi_type.arrlist[-1]
        if not isinstance(argument, list) or (size and len(argument) != size[0]):
            raise ValueError(f"{abi_type.to_type_str()} is a list" + (f" of {size[0]}" if size else ""))
        return [_value(abi_type.item_type, element) for element in argument]
    if isinstance(abi_type, TupleType):
        if not isinstance(argument, list) or len(argument) != len(abi_type.components):
            raise ValueError(f"the tuple is a list of {len(abi_type.components)}")
        return tuple(_value(component, part) for component, part in zip(abi_type.components, argument, strict=True))
    return _simple_value(abi_type.base, abi_type.sub, argument)


def _simple_value(kind: str, size: int | None, argument: object) -> object:
    match kind, argument:
        case "address", _:
            try:
                return parse_address(argument, "address")
            except WalletError as error:
                raise ValueError(f"address: {error.details['rule']}") from error
        case "bool", bool():
            return argument
        case "string", str():
            try:
                argument.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError("string is UTF-8 text") from error
            return argument
        case "bytes", str() if _HEX.fullmatch(argument):
            data = bytes.fromhex(argument[2:])
            if size is None or len(data) == size:
                return data
        case "int" | "uint", int() | str() if not isinstance(argument, bool):
            assert size is not None
            if isinstance(argument, str):
                argument = int(argument) if _INTEGER.fullmatch(argument) and argument != "-0" else 2**size
            low, high = (-(2 ** (size - 1)), 2 ** (size - 1)) if kind == "int" else (0, 2**size)
            if low <= argument < high:
                return argument
    rules = {
        "bool": "bool is true or false",
        "string": "string is text",
        "bytes": f"bytes{size or ''} is 0x hex" + (f" of {size} bytes" if size else ""),
    }
    raise ValueError(rules.get(kind, f"{kind}{size} is a whole number in its range"))


def _invalid(message: str, **details: str | int) -> WalletError:
    return WalletError(Reason.INVALID_CALLDATA, message, field="data", **details)
