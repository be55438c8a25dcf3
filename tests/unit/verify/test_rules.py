"""One rule broken at a time, in a log that is consistent around it: hashes, proofs and signatures all made anew."""

import json

import coincurve
import pytest

from tests.unit.verify import forge
from tests.unit.verify.forge import Block, Draft, Tx, edited, hexed, plain_link
from tests.unit.verify.mutation import other_types
from tests.unit.verify.verdict import failed, link_verdict, verdict, why

INTENT, SIGNATURE, REQUEST, RESPONSE, INCLUDED, SAFE, FINALIZED = range(7)
OTHER_KEY = coincurve.PrivateKey(b"\x99" * 32)


def rejected_by(drafts: list[Draft], number: int, **options: object) -> str:
    report = link_verdict(drafts, **options)
    assert failed(report) == [number], report.checks
    return why(report)


# What may be


@pytest.mark.parametrize(
    "tx",
    [
        Tx(tx_type=0),
        Tx(tx_type=1, access_list=[[b"\x01" * 20, [b"\x02" * 32]], [b"\x03" * 20, []]]),
        Tx(tx_type=2, nonce=300),
        Tx(to=None, data=b"\x60\x00"),
        Tx(value=0, data=bytes(131_072)),
    ],
)
def test_accepts_each_form_of_transaction(tx: Tx) -> None:
    assert link_verdict(plain_link(tx)).accepted


@pytest.mark.parametrize("index", [0, 1, 15, 127, 128, 200])
def test_accepts_any_index_in_the_block(index: int) -> None:
    assert link_verdict(plain_link(index=index, others=201)).accepted


def test_accepts_a_block_of_one_transaction() -> None:
    assert link_verdict(plain_link(index=0, others=0)).accepted


@pytest.mark.parametrize("extra_fields", [0, 1, 6])
def test_accepts_headers_of_every_fork_since_paris(extra_fields: int) -> None:
    assert link_verdict(plain_link(extra_fields=extra_fields)).accepted


def test_accepts_a_reverted_transaction() -> None:
    report = link_verdict(plain_link(receipt_status=b""))
    assert report.accepted
    assert (report.state, report.receipt_status) == ("FINALIZED", 0)


def test_accepts_further_fields_and_text_of_any_language() -> None:
    drafts = edited(plain_link(), INTENT, actor="Zoë 🦊", extra={"ﬃ": [1.5, None], "😀": 1}, supersedes="transfer-0")
    assert link_verdict(drafts).accepted


def test_accepts_an_intent_with_approvals_that_fills_a_free_nonce() -> None:
    policy = plain_link()[INTENT].body["policy"] | {"approvals": ["0x" + "1f" * 32]}
    assert link_verdict(edited(plain_link(), INTENT, policy=policy, supersedes=None)).accepted


def test_accepts_errors_and_silence_beside_one_answer() -> None:
    link = plain_link()
    signed = link[SIGNATURE]
    more = [forge.request(signed, 0.4, 2), forge.no_answer(0.5, 2), forge.request(signed, 0.6, 1, "node-b")]
    more += [forge.error_response(signed, 0.7, 1, "node-b")]
    assert link_verdict(link[:4] + more + link[4:]).accepted
    only_error = [*link[:3], forge.error_response(signed), *link[4:]]
    assert link_verdict(only_error).accepted


def test_accepts_a_batch_element() -> None:
    batch = {"sha256": hexed(b"\x01" * 32), "index": 4, "size": 5}
    assert link_verdict(edited(plain_link(), REQUEST, batch=batch)).accepted


# Fields of the wrong form

NULL_ALLOWED = {("intent", n) for n in ("actor", "source_ip", "client_fingerprint")}
NULL_ALLOWED |= {("request", "batch"), ("response", "client_version")}


def _form_cases() -> list[tuple[int, str]]:
    positions = (INTENT, SIGNATURE, REQUEST, RESPONSE, INCLUDED)
    return [(position, name) for position in positions for name in plain_link()[position].body]


@pytest.mark.parametrize(("position", "name"), _form_cases())
def test_rejects_a_field_missing_or_of_another_type(position: int, name: str) -> None:
    link = plain_link()
    draft = link[position]
    old = draft.body[name]
    rejected_by(edited(link, position, **{name: ...}), 2)
    nullable = old is None or (draft.kind, name) in NULL_ALLOWED
    for new in other_types(old):
        if (new is None or isinstance(new, str)) and nullable:
            continue
        if name == "duration_ms" and new == 7:
            continue  # a whole number of milliseconds is a number
        assert failed(link_verdict(edited(link, position, **{name: new}))), new


HEX_FIELDS = [
    *((INTENT, n) for n in ("from", "to", "data", "unsigned_tx", "tx_sign_hash", "signing_digest")),
    *((SIGNATURE, n) for n in ("r", "s", "raw_tx", "tx_hash")),
    *((REQUEST, n) for n in ("body",)),
    *((RESPONSE, n) for n in ("body", "tx_hash")),
    *((INCLUDED, n) for n in ("block_hash", "header_rlp", "receipt_rlp", "logs_bloom", "sha3_uncles")),
]


@pytest.mark.parametrize(("position", "name"), HEX_FIELDS)
def test_rejects_every_kind_of_change_to_hex(position: int, name: str) -> None:
    link = plain_link(Tx(data=b"\xab\xcd"))
    text = link[position].body[name]
    swapped = [text[:i] + ("1" if text[i] == "0" else "0") + text[i + 1 :] for i in {2, len(text) // 2, len(text) - 1}]
    badly = [text.upper(), "0X" + text[2:], text[2:], text[:-1], text + " ", text[:4] + " " + text[4:], text + "zz"]
    for new in badly:
        rejected_by(edited(link, position, **{name: new}), 2)
    for new in [*swapped, text + "00", text[:-2], "0x"]:
        assert failed(link_verdict(edited(link, position, **{name: new}))), new


@pytest.mark.parametrize("name", ["transaction_proof", "receipt_proof"])
def test_rejects_every_change_to_a_trie_proof(name: str) -> None:
    link = plain_link()
    proof = link[INCLUDED].body[name]
    assert len(proof) > 2
    changed = [proof[:-1], proof[1:], [*proof, proof[-1]], [*proof, "0x80"], proof[::-1], []]
    for i, node in enumerate(proof):
        for at in (2, len(node) // 2, len(node) - 1):
            byte = node[:at] + ("1" if node[at] == "0" else "0") + node[at + 1 :]
            changed.append([*proof[:i], byte, *proof[i + 1 :]])
    for new in changed:
        rejected_by(edited(link, INCLUDED, **{name: new}), 10)


# Leaf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("v", v) for v in (0, 2, True, "1", 1.5, None)),
        *(("kind", v) for v in ("policy", "Intent", "", None, [], "key")),
        *(("link_id", v) for v in ("", "a b", "x" * 65, "é", None, 1)),
        *(("step", v) for v in ("2", -1, True, None)),
        *(("prev", v) for v in ("", "0x", None, "0x00", 0)),
        *(
            ("at", v)
            for v in ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123456+00:00", "2026-02-30T03:04:05.123456Z")
        ),
        *(
            ("at", v)
            for v in ("2026-01-02t03:04:05.123456Z", "2026-01-02 03:04:05.123456Z", "0000-01-01T00:00:00.000000Z")
        ),
        ("at", "2026-01-02T03:04:0٥.123456Z"),
        *(("trace_id", v) for v in ("0" * 32, "A" * 32, "a" * 31, "0x" + "a" * 30, None)),
        *(("span_id", v) for v in ("0" * 16, "A" * 16, "a" * 15, None)),
        *(("body", v) for v in ("0x" + "00" * 32, "0x", "", None)),
        ("extra", 1),
        *((n, ...) for n in ("v", "kind", "link_id", "step", "prev", "at", "trace_id", "span_id", "body")),
    ],
)
def test_rejects_a_malformed_leaf(name: str, value: object) -> None:
    link = plain_link()
    link[REQUEST].leaf[name] = value
    rejected_by(link, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("link_id", "transfer-2"), ("trace_id", "a" * 32), ("step", 3), ("step", 1), ("prev", "0x" + "00" * 32)],
)
def test_rejects_a_leaf_of_another_chain(name: str, value: object) -> None:
    link = plain_link()
    link[REQUEST].leaf[name] = value
    rejected_by(link, 3)


def test_rejects_a_link_that_does_not_begin_at_its_first_step() -> None:
    link = plain_link()
    for step, draft in enumerate(link):
        draft.leaf["step"] = step + 1
    link[0].leaf["prev"] = "0x" + "12" * 32
    rejected_by(link, 3)


def test_rejects_a_log_index_that_does_not_grow() -> None:
    assert failed(verdict(forge.seal(plain_link(), gap=3))) == []
    assert failed(verdict(forge.seal(plain_link(), tree_size=100, gap=-1))) == [3]


@pytest.mark.parametrize(
    "text", [b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":1,"a":1}', b'{"a":1.0}', b'{"a":-0}', b"\xff", b""]
)
def test_rejects_a_body_that_is_not_canonical(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    canonical = forge.rfc8785.dumps
    monkeypatch.setattr(forge.rfc8785, "dumps", lambda value: text if value == {"marked": 1} else canonical(value))
    link = plain_link()
    link[REQUEST].body = {"marked": 1}
    sealed = forge.seal(link)
    monkeypatch.undo()
    assert failed(verdict(sealed)) == [2]


def test_rejects_leaf_and_body_over_their_limits() -> None:
    link = plain_link()
    link[REQUEST].leaf["extra"] = "x" * 2048
    assert "2048" in rejected_by(link, 1)
    assert "1048576" in rejected_by(edited(plain_link(), REQUEST, extra="x" * 2**20), 1)
    assert "131072" in rejected_by(plain_link(Tx(data=bytes(131_073))), 2)


def test_rejects_a_salt_of_another_length() -> None:
    link = plain_link()
    link[REQUEST].salt = b"short"
    rejected_by(link, 1)


# Intent


@pytest.mark.parametrize("name", ["value_wei"])
@pytest.mark.parametrize("value", ["01", "-1", "1.0", "", "1e18", " 1", "٣", str(2**256), "0x1"])
def test_rejects_a_malformed_amount(name: str, value: str) -> None:
    rejected_by(edited(plain_link(), INTENT, **{name: value}), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("value_wei", "1000000000000000008"),
        ("to", "0x" + "01" * 20),
        ("to", None),
        ("data", "0x00"),
        ("account", f"eip155:{forge.CHAIN}:0x" + "01" * 20),
        ("account", ""),
        ("chain_id", "eip155:1"),
        ("tx_sign_hash", "0x" + "00" * 32),
        ("signing_digest", "0x" + "00" * 32),
        ("unsigned_tx", hexed(Tx(nonce=1).unsigned())),
        ("from", "0x" + "01" * 20),
    ],
)
def test_rejects_an_intent_that_says_what_its_transaction_does_not(name: str, value: object) -> None:
    rejected_by(edited(plain_link(), INTENT, **{name: value}), 7)


def test_rejects_an_account_in_mixed_case() -> None:
    account = plain_link()[INTENT].body["account"]
    rejected_by(edited(plain_link(), INTENT, account=account[:-40] + account[-40:].upper()), 7)


@pytest.mark.parametrize("value", ["eip155:031337", "eip155:0", "eip155:", "EIP155:31337", "solana:1", "eip155:31337 "])
def test_rejects_a_malformed_chain_id(value: str) -> None:
    rejected_by(edited(plain_link(), INTENT, chain_id=value), 2)


def test_rejects_a_chain_that_is_not_trusted() -> None:
    assert "not trusted" in rejected_by(plain_link(Tx(chain=5)), 7)


@pytest.mark.parametrize(
    "policy",
    [
        {"decision": "maybe"},
        {"decision": None},
        {"version": "3"},
        {"sha256": "0x00"},
        {"rules": "daily-limit"},
        {"rules": [1]},
        {"version": ...},
    ],
)
def test_rejects_a_malformed_policy(policy: dict) -> None:
    whole = plain_link()[INTENT].body["policy"] | policy
    rejected_by(edited(plain_link(), INTENT, policy={k: v for k, v in whole.items() if v is not ...}), 2)


@pytest.mark.parametrize("value", ["", "a b", 1, [], "x" * 65])
def test_rejects_a_malformed_supersedes(value: object) -> None:
    rejected_by(edited(plain_link(), INTENT, supersedes=value), 2)


def _with_preimage(preimage: bytes) -> list[Draft]:
    hashes = {"tx_sign_hash": hexed(forge.sha256(preimage).digest()), "signing_digest": hexed(forge.keccak(preimage))}
    return edited([forge.intent(Tx(), decision="deny")], 0, unsigned_tx=hexed(preimage), **hashes)


@pytest.mark.parametrize(
    "preimage",
    [
        b"",
        b"\x03" + Tx().unsigned()[1:],
        b"\x04" + Tx().unsigned()[1:],
        b"\x00" + Tx(tx_type=0).unsigned(),
        forge.rlp.encode(Tx(tx_type=0).fields()),
        forge.rlp.encode([*Tx(tx_type=0).fields(), forge.CHAIN, 1, 0]),
        b"\x02" + forge.rlp.encode([*Tx().fields(), 0]),
        b"\x02" + forge.rlp.encode(Tx().fields()[:-1]),
        b"\x02" + forge.rlp.encode([b"\0" + forge.CHAIN.to_bytes(2, "big"), *Tx().fields()[1:]]),
        b"\x02" + forge.rlp.encode([*Tx().fields()[:4], 2**64, *Tx().fields()[5:]]),
        b"\x02" + forge.rlp.encode([*Tx().fields()[:8], [[b"\x01" * 19, []]]]),
        b"\x02" + forge.rlp.encode([*Tx().fields()[:8], b""]),
        Tx().unsigned() + b"\0",
        Tx().unsigned()[:-1],
        Tx(to=b"\x01" * 19).unsigned(),
    ],
)
def test_rejects_a_preimage_it_does_not_understand(preimage: bytes) -> None:
    assert link_verdict(_with_preimage(Tx().unsigned())).accepted
    rejected_by(_with_preimage(preimage), 7)


# Signature


def _resigned(signed: Draft) -> list[Draft]:
    link = plain_link()
    mined = Block(forge.raw_tx(signed))
    ends = [mined.inclusion(status, 2.0 + i) for i, status in enumerate(("included", "safe", "finalized"))]
    return [link[INTENT], signed, forge.request(signed), forge.response(signed), *ends]


def test_rejects_a_signature_by_another_key() -> None:
    assert link_verdict(_resigned(forge.signature(Tx()))).accepted
    assert "not by the intent's from" in rejected_by(_resigned(forge.signature(Tx(), key=OTHER_KEY)), 8)


def test_rejects_a_high_s() -> None:
    assert "EIP-2" in rejected_by(_resigned(forge.signature(Tx(), high_s=True)), 8)


def test_rejects_a_signature_of_another_transaction() -> None:
    rejected_by(_resigned(forge.signature(Tx(value=1))), 8)


@pytest.mark.parametrize("value", ["00" * 32, "ff" * 32, f"{forge.CURVE_ORDER:064x}"])
@pytest.mark.parametrize("name", ["r", "s"])
def test_rejects_r_and_s_outside_the_curve(name: str, value: str) -> None:
    rejected_by(edited(plain_link(), SIGNATURE, **{name: "0x" + value}), 8)


@pytest.mark.parametrize("change", [{"raw_tx": hexed(Tx().unsigned())}, {"tx_hash": "0x" + "00" * 32}])
def test_rejects_signed_bytes_that_are_not_the_intents(change: dict) -> None:
    rejected_by(edited(plain_link(), SIGNATURE, **change), 8)


def test_rejects_the_other_y_parity() -> None:
    y_parity = plain_link()[SIGNATURE].body["y_parity"]
    rejected_by(edited(plain_link(), SIGNATURE, y_parity=1 - y_parity), 8)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "ed25519"},
        {"status": "ok"},
        {"y_parity": 2},
        {"error": "late"},
        {"status": "failed"},
        {"status": "timeout", "error": "late"},
        {"duration_ms": -1},
        {"duration_ms": None},
        {"token": None},
        {"token": {"label": "x", "serial": "y"}},
        {"token": {"label": "x", "serial": "y", "library": None}},
    ],
)
def test_rejects_a_malformed_signature(change: dict) -> None:
    rejected_by(edited(plain_link(), SIGNATURE, **change), 2)


@pytest.mark.parametrize("status", ["failed", "timeout"])
@pytest.mark.parametrize(
    "change", [{"error": None}, {"r": "0x" + "01" * 32}, {"y_parity": 0}, {"tx_hash": "0x" + "01" * 32}]
)
def test_rejects_a_failure_that_claims_results(status: str, change: dict) -> None:
    link = [forge.intent(Tx()), forge.failed_signature(status=status)]
    assert link_verdict(link, state="BUILT").accepted
    rejected_by(edited(link, 1, **change), 2, state="BUILT")


def test_rejects_a_failure_by_another_name() -> None:
    rejected_by([forge.intent(Tx()), forge.failed_signature(status="cancelled")], 2, state="BUILT")


# Request and response


@pytest.mark.parametrize(
    "call",
    [
        {"jsonrpc": "1.0"},
        {"method": "eth_sendTransaction"},
        {"params": []},
        {"params": ["0x00"]},
        {"params": [plain_link()[SIGNATURE].body["raw_tx"], "latest"]},
        {"params": [plain_link()[SIGNATURE].body["raw_tx"].upper()]},
        {"params": plain_link()[SIGNATURE].body["raw_tx"]},
        {"id": None},
        {"id": True},
        {"id": [1]},
        {"extra": 1},
    ],
)
def test_rejects_a_request_that_sends_something_else(call: dict) -> None:
    link = plain_link()
    link[REQUEST] = forge.request(link[SIGNATURE], **call)
    rejected_by(link, 9)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"\xff", b'[{"jsonrpc":"2.0"}]', b'{"id":1,"id":1}', b"[" * 10_000]
)
def test_rejects_a_request_body_that_is_no_call(body: bytes) -> None:
    rejected_by(edited(plain_link(), REQUEST, body=hexed(body)), 9)


@pytest.mark.parametrize("node", ["", "https://node.example/v3/key"])
@pytest.mark.parametrize("position", [REQUEST, RESPONSE])
def test_rejects_a_node_that_is_not_a_name(node: str, position: int) -> None:
    rejected_by(edited(plain_link(), position, node=node), 2)


@pytest.mark.parametrize(
    "batch", [{}, [], {"sha256": "0x" + "01" * 32, "index": 5, "size": 5}, {"sha256": "0x", "index": 0, "size": 5}]
)
def test_rejects_a_malformed_batch(batch: object) -> None:
    rejected_by(edited(plain_link(), REQUEST, batch=batch), 2)


@pytest.mark.parametrize("change", [{"node": "node-b"}, {"attempt": 2}])
def test_rejects_a_response_to_no_request(change: dict) -> None:
    rejected_by(edited(plain_link(), RESPONSE, **change), 9)


@pytest.mark.parametrize(
    "answer", [{"id": 2}, {"id": "1"}, {"id": True}, {"result": "0x" + "01" * 32}, {"jsonrpc": "1.0"}]
)
def test_rejects_a_tx_hash_that_the_node_did_not_answer(answer: dict) -> None:
    link = plain_link()
    link[RESPONSE] = forge.response(link[SIGNATURE], **answer)
    assert failed(link_verdict(link)) == [9]
    # The same nonsense, honestly recorded as no result, is evidence like any other.
    assert link_verdict(edited(link, RESPONSE, tx_hash=None)).accepted


@pytest.mark.parametrize(
    "change",
    [
        {"tx_hash": None},
        {"tx_hash": "0x" + "01" * 32},
        {"http_status": 500},
        {"http_status": 201},
        {"body": "0x"},
        {"body": hexed(b"[" * 10_000)},
        {"body": hexed(json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": 1}}).encode())},
    ],
)
def test_rejects_a_tx_hash_that_is_not_the_answer(change: dict) -> None:
    rejected_by(edited(plain_link(), RESPONSE, **change), 9)


@pytest.mark.parametrize(
    "change",
    [
        {"http_status": None},
        {"http_status": 99},
        {"http_status": 600},
        {"headers": {"X-Node-Id": "a"}},
        {"headers": {"x-node-id": 1}},
        {"headers": None},
    ],
)
def test_rejects_a_malformed_response(change: dict) -> None:
    rejected_by(edited(plain_link(), RESPONSE, **change), 2)


@pytest.mark.parametrize("change", [{"headers": {"a": "b"}}, {"body": "0x00"}, {"tx_hash": "0x" + "01" * 32}])
def test_rejects_silence_that_says_something(change: dict) -> None:
    link = [*plain_link()[:3], forge.no_answer()]
    assert link_verdict(link, state="SUBMITTED").accepted
    rejected_by(edited(link, 3, **change), 2, state="SUBMITTED")


def test_rejects_the_same_attempt_twice_and_two_responses() -> None:
    link = plain_link()
    signed = link[SIGNATURE]
    rejected_by([*link[:4], forge.request(signed, 0.4), *link[4:]], 9)
    rejected_by([*link[:4], forge.response(signed, 0.4), *link[4:]], 9)


def test_rejects_a_request_before_its_signature() -> None:
    link = plain_link()
    early = [forge.request(link[SIGNATURE], 0.05), forge.response(link[SIGNATURE], 0.06)]
    rejected_by([link[INTENT], *early, link[SIGNATURE], *link[4:]], 9)


# Inclusion


@pytest.mark.parametrize(
    "change",
    [
        {"block_number": 78},
        {"block_hash": "0x" + "01" * 32},
        {"transaction_index": 0},
        {"transaction_index": 2},
        {"logs_bloom": "0x" + "00" * 256},
        {"logs_bloom": "0x" + "ff" * 256},
        {"sha3_uncles": "0x" + "01" * 32},
        {"receipt_rlp": "0x02c0"},
        {"agreeing_nodes": []},
        {"agreeing_nodes": ["node-a", "node-a"]},
    ],
)
def test_rejects_an_inclusion_that_its_proofs_do_not_bear(change: dict) -> None:
    rejected_by(edited(plain_link(), INCLUDED, **change), 10)


@pytest.mark.parametrize("change", [{"status": "mined"}, {"status": "FINALIZED"}, {"agreeing_nodes": ["http://a"]}])
def test_rejects_a_malformed_inclusion(change: dict) -> None:
    rejected_by(edited(plain_link(), INCLUDED, **change), 2)


@pytest.mark.parametrize("position", [SAFE, FINALIZED])
def test_rejects_finality_that_too_few_nodes_see(position: int) -> None:
    assert link_verdict(edited(plain_link(), INCLUDED, agreeing_nodes=["node-a"])).accepted
    rejected_by(edited(plain_link(), position, agreeing_nodes=["node-a"]), 10)
    assert link_verdict(edited(plain_link(), position, agreeing_nodes=["a"]), trust=forge.trust(1)).accepted
    rejected_by(plain_link(), 10, trust=forge.trust(3))


def test_rejects_a_transaction_that_the_link_did_not_request() -> None:
    stranger = Block(forge.raw_tx(forge.signature(Tx(value=1))))
    link = plain_link()
    assert "not one that this link requested" in rejected_by([*link[:4], stranger.inclusion("finalized", 2.0)], 10)


def _set(position: int, value: object):
    def edit(header: list) -> None:
        header[position] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _set(4, b"\x01" * 32),
        _set(5, b"\x01" * 32),
        _set(0, b"\x01" * 31),
        _set(1, b"\x01" * 32),
        _set(2, b""),
        _set(3, []),
        _set(6, bytes(256)),
        _set(6, bytes(255)),
        _set(7, b"\0"),
        _set(8, 78),
        _set(8, b"\0\x4d"),
        _set(9, b"\0\x01"),
        _set(10, []),
        _set(11, b"\0" + forge.rlp.encode(1)),
        _set(12, [b""]),
        _set(13, b""),
        _set(14, bytes(7)),
        lambda header: header.__delitem__(slice(14, None)),
    ],
)
def test_rejects_a_header_that_is_not_the_blocks(edit) -> None:
    rejected_by(plain_link(edit_header=edit), 10)


@pytest.mark.parametrize("status", [b"\x02", b"\x00", b"\x01\x00", bytes(32)])
def test_rejects_a_receipt_status_other_than_0_and_1(status: bytes) -> None:
    rejected_by(plain_link(receipt_status=status), 10)


@pytest.mark.parametrize(("tx_type", "prefix"), [(2, b""), (2, b"\x01"), (1, b"\x02"), (0, b"\x02"), (0, b"\x00")])
def test_rejects_a_receipt_of_another_type(tx_type: int, prefix: bytes) -> None:
    rejected_by(plain_link(Tx(tx_type=tx_type), receipt_prefix=prefix), 10)


@pytest.mark.parametrize("bloom", [b"\x80" + bytes(255), bytes(255), bytes(257)])
def test_rejects_a_receipt_bloom_outside_the_headers(bloom: bytes) -> None:
    rejected_by(plain_link(receipt_bloom=bloom), 10)


# Revocation


@pytest.mark.parametrize(
    "change", [{"reason": None}, {"depth": "1"}, {"depth": -1}, {"block_hash": "0x"}, {"depth": ...}]
)
def test_rejects_a_malformed_revocation(change: dict) -> None:
    link = plain_link()[:5]
    link.append(forge.revocation(link[4], 3.0))
    assert link_verdict(link, state="SUBMITTED").accepted
    rejected_by(edited(link, 5, **change), 2, state="SUBMITTED")
