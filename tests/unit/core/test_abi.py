from typing import Any

import pytest
from eth_abi.abi import default_codec
from eth_abi.grammar import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.abi import encode_call, erc20_transfer, selector
from services.core.addresses import Address
from services.core.errors import Reason, WalletError

CHECKSUMMED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
TRANSFER = "transfer(address,uint256)"


def word(value: int) -> str:
    return f"{value:064x}"


def decoded(data: bytes, signature: str) -> list[Any]:
    """The arguments as eth-abi's own decoder reads them, in their JSON forms."""
    declared = signature[signature.index("(") :]
    types = [] if declared == "()" else [one.to_type_str() for one in parse(declared).components]
    assert data[:4] == selector(signature)
    return [_json_form(value) for value in default_codec.decode(types, data[4:])]


def _json_form(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_json_form(one) for one in value]
    return "0x" + value.hex() if isinstance(value, bytes) else value


def test_erc20_transfer() -> None:
    # a9059cbb is ERC-20's well-known transfer selector.
    expected = "a9059cbb" + "00" * 12 + CHECKSUMMED[2:].lower() + word(7)
    assert erc20_transfer(Address(bytes.fromhex(CHECKSUMMED[2:])), 7).hex() == expected
    for amount in (7, "7"):
        assert encode_call(TRANSFER, [CHECKSUMMED, amount]).hex() == expected


def test_examples_of_the_abi_specification() -> None:
    # Source: Solidity documentation, Contract ABI Specification, "Examples".
    assert encode_call("baz(uint32,bool)", [69, True]).hex() == "cdcd77c0" + word(69) + word(1)
    bar = encode_call("bar(bytes3[2])", [["0x616263", "0x646566"]])
    assert bar.hex() == "fce353f6" + "616263".ljust(64, "0") + "646566".ljust(64, "0")
    sam = encode_call("sam(bytes,bool,uint256[])", ["0x64617665", True, ["1", 2, 3]])
    tail = word(4) + "64617665".ljust(64, "0") + word(3) + word(1) + word(2) + word(3)
    assert sam.hex() == "a5643bf2" + word(0x60) + word(1) + word(0xA0) + tail


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("f()", []),
        ("f(int8,int256)", [-128, 2**255 - 1]),
        ("f((address,(uint256,bytes[])[2][]),string)", [["0x" + "ab" * 20, [[[1, ["0x", "0x01"]], [2, []]]]], "grüße"]),
        ("f(uint256[],uint256[],uint256[],uint256[],uint256[],uint256[],uint256[],uint256[],uint256[])", [[1]] * 9),
        ("f(bytes32,bool[3])", ["0x" + "11" * 32, [True, False, True]]),
    ],
)
def test_another_decoder_reads_the_arguments(signature: str, arguments: list[object]) -> None:
    assert decoded(encode_call(signature, arguments), signature) == arguments


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=70))))
def test_arrays_of_tuples_round_trip(rows: list[tuple[int, bytes]]) -> None:
    arguments: list[object] = [[[number, "0x" + blob.hex()] for number, blob in rows]]
    assert decoded(encode_call("f((uint64,bytes)[])", arguments), "f((uint64,bytes)[])") == arguments


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        ("address", CHECKSUMMED.replace("aA", "AA")),
        ("address", "0x00"),
        ("address", 5),
        ("uint8", 256),
        ("uint8", -1),
        ("uint8", "256"),
        ("uint8", "01"),
        ("uint8", "0x1"),
        ("uint8", 1.0),
        ("uint8", True),
        ("uint256", "9" * 5000),
        ("int8", 128),
        ("int8", "-129"),
        ("int8", "-0"),
        ("bool", 1),
        ("bool", "true"),
        ("string", 5),
        ("string", "\ud800"),
        ("bytes", "abc"),
        ("bytes", "0x1"),
        ("bytes4", "0x11"),
        ("bytes4", "0x1111111111"),
        ("uint8[2]", [1]),
        ("uint8[]", "12"),
        ("uint8[]", [1, 300]),
        ("(uint8,bool)", [1]),
        ("(uint8,bool)", {"a": 1}),
        ("uint8", None),
    ],
)
def test_an_argument_that_does_not_fit_is_named(kind: str, argument: Any) -> None:
    with pytest.raises(WalletError) as refusal:
        encode_call(f"f(bool,{kind})", [True, argument])
    assert refusal.value.reason is Reason.INVALID_CALLDATA
    assert refusal.value.details["index"] == 1
    assert refusal.value.details["rule"]


def test_the_number_of_arguments_is_checked() -> None:
    for arguments in ([], [CHECKSUMMED], [CHECKSUMMED, 1, 2]):
        with pytest.raises(WalletError, match="2 arguments"):
            encode_call(TRANSFER, arguments)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "f",
        "f(",
        "(uint256)",
        "f (uint256)",
        "f(uint256) ",
        "f(uint256, bool)",
        "f(uint)",
        "f(bool8)",
        "f(address160)",
        "f(byte)",
        "f(function)",
        "f(fixed128x18)",
        "f(())",
        "f(uint256[0])",
        "f(bytes33)",
        "f(uint8,)",
        "f(uint08)",
        "f" + "(" * 500 + ")" * 500,
        "f(uint8" + "[]" * 9 + ")",
        "f(" + "uint8," * 300 + "uint8)",
        "f(uint8))",
        "f)(uint8(",
    ],
)
def test_other_signatures_are_refused(signature: str) -> None:
    with pytest.raises(WalletError) as refusal:
        selector(signature)
    assert (refusal.value.reason, refusal.value.details["field"]) == (Reason.INVALID_CALLDATA, "data")


def test_call_data_ends_at_128_kib() -> None:
    # selector, offset and length take 68 bytes; the rest is padded to whole words.
    assert len(encode_call("f(bytes)", ["0x" + "11" * (128 * 1024 - 96)])) == 128 * 1024 - 96 + 68
    with pytest.raises(WalletError, match="128 KiB"):
        encode_call("f(bytes)", ["0x" + "11" * (128 * 1024)])
