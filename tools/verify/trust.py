"""What the person who verifies trusts: `goldenlink.trust.v1`."""

from dataclasses import dataclass

from tools.verify import fields
from tools.verify.anchor import Ledger, parse_ledger
from tools.verify.checkpoint import VerifierKey, parse_verifier_key
from tools.verify.refusal import Refused, quoted
from tools.verify.strict_json import parse_json

_MEMBERS = frozenset({"format", "evidence_keys", "chain_ids", "min_agreeing_nodes", "ledger"})


@dataclass(frozen=True, slots=True)
class Trust:
    """`ledger` None: bundles carry no anchor. `chain_ids` are CAIP-2."""

    evidence_keys: tuple[VerifierKey, ...]
    chain_ids: frozenset[str]
    min_agreeing_nodes: int
    ledger: Ledger | None


def load_trust(raw: bytes) -> Trust:
    """The trust file `raw`.

    Raises:
        Refused: the file is not exactly a goldenlink.trust.v1.
    """
    trust = fields.exactly(parse_json(raw, "the trust file"), _MEMBERS, "the trust file")
    if trust["format"] != "goldenlink.trust.v1":
        raise Refused(f"the trust file's format is {quoted(trust['format'])}")
    keys = tuple(
        parse_verifier_key(key, f"trust.evidence_keys[{i}]")
        for i, key in enumerate(fields.array(trust["evidence_keys"], "trust.evidence_keys"))
    )
    if not keys or len({(key.name, key.key_id) for key in keys}) != len(keys):
        raise Refused("trust.evidence_keys is empty or repeats a key")
    chain_ids = [fields.text(c, "trust.chain_ids") for c in fields.array(trust["chain_ids"], "trust.chain_ids")]
    for chain_id in chain_ids:
        fields.chain_number(chain_id, "trust.chain_ids")
    if not chain_ids or len(set(chain_ids)) != len(chain_ids):
        raise Refused("trust.chain_ids is empty or repeats a chain")
    min_agreeing_nodes = fields.integer(trust["min_agreeing_nodes"], "trust.min_agreeing_nodes")
    if min_agreeing_nodes < 1:
        raise Refused("trust.min_agreeing_nodes is 0")
    ledger = None if trust["ledger"] is None else parse_ledger(trust["ledger"])
    return Trust(keys, frozenset(chain_ids), min_agreeing_nodes, ledger)
