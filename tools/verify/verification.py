"""The numbered flow, from two files to a report. See the package's docstring for the numbers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tools.verify import fields, merkle
from tools.verify.anchor import check_anchor
from tools.verify.block import ProvenTx, prove_inclusion
from tools.verify.body import Inclusion
from tools.verify.checkpoint import Checkpoint, check_signatures, parse_checkpoint
from tools.verify.entry import Entry, SealedEntry, of_kind, open_entry, parse_sealed_entry
from tools.verify.order import STATES, Mined, check_required_state, check_times, reached_state
from tools.verify.refusal import Refused, quoted
from tools.verify.report import Check, Report
from tools.verify.signing import CheckedIntent, SignedTx, check_intents
from tools.verify.signing import check_signatures as check_transaction_signatures
from tools.verify.strict_json import parse_json
from tools.verify.submission import Submission, check_submissions
from tools.verify.trust import Trust, load_trust

MAX_FILE_BYTES = 64 * 1024 * 1024
_MEMBERS = frozenset({"format", "link_id", "trace_id", "entries", "checkpoint", "anchor"})


def verify_bundle(bundle: bytes, trust: bytes | Trust, state: str | None = None) -> Report:
    """Verify a `goldenlink.bundle.v1` against a `goldenlink.trust.v1`. Never raises for what the two hold.

    `state` asks for a link that has come at least so far, in place of a closed one (FINALIZED, or denied).

    Raises:
        ValueError: `state` is not one of order.STATES.
    """
    if state is not None and state not in STATES:
        raise ValueError(f"no such state: {state}")
    return _Verification(bundle, trust, state).run()


@dataclass(slots=True)
class _Verification:
    """What the checks hand on to later ones; a check runs only if those that it needs have passed."""

    bundle: bytes
    given_trust: bytes | Trust
    required_state: str | None
    report: Report = field(default_factory=Report)
    trust: Trust = field(init=False)
    sealed: list[SealedEntry] = field(init=False)
    checkpoint: Checkpoint = field(init=False)
    anchor: object = None
    entries: list[Entry] = field(init=False)
    intents: list[CheckedIntent] = field(init=False)
    signed: list[SignedTx] = field(init=False)
    submissions: list[Submission] = field(init=False)
    mined: list[Mined] = field(init=False)

    def run(self) -> Report:
        failed: set[int] = set()
        for number, (name, needs, check) in enumerate(_FLOW, start=1):
            if missing := sorted(failed.intersection(needs)):
                ok, detail = False, f"not reached: check {missing[0]} failed"
            else:
                ok, detail = self._outcome(check)
            if not ok:
                failed.add(number)
            self.report.checks.append(Check(number, name, ok, detail))
        return self.report

    def _outcome(self, check: Callable[["_Verification"], str]) -> tuple[bool, str]:
        try:
            return True, check(self)
        except Refused as refused:
            return False, str(refused)
        except Exception as error:  # fail closed: what we did not foresee is not accepted, and is no traceback
            return False, f"not understood ({type(error).__name__})"

    def form(self) -> str:
        # (1) The two files are what they say they are, and hold nothing else.
        if len(self.bundle) > MAX_FILE_BYTES:
            raise Refused(f"the bundle has more than {MAX_FILE_BYTES} bytes")
        bundle = fields.exactly(parse_json(self.bundle, "the bundle"), _MEMBERS, "the bundle")
        if bundle["format"] != "goldenlink.bundle.v1":
            raise Refused(f"the bundle's format is {quoted(bundle['format'])}")
        self.report.link_id = fields.link_id(bundle["link_id"], "link_id")
        self.report.trace_id = fields.w3c_id(bundle["trace_id"], 32, "trace_id")
        entries = fields.array(bundle["entries"], "entries")
        if not entries:
            raise Refused("the bundle has no entries")
        self.sealed = [parse_sealed_entry(entry, f"entries[{i}]") for i, entry in enumerate(entries)]
        self.checkpoint = parse_checkpoint(fields.text(bundle["checkpoint"], "checkpoint"))
        self.anchor = bundle["anchor"]
        self.report.entries = len(self.sealed)
        self.report.log_origin, self.report.tree_size = self.checkpoint.origin, self.checkpoint.tree_size
        self.trust = self.given_trust if isinstance(self.given_trust, Trust) else load_trust(self.given_trust)
        return f"{len(self.sealed)} entries"

    def commitments(self) -> str:
        # (2) Leaves and bodies are canonical and complete; each leaf commits to its salt and body.
        self.entries = []
        for i, sealed in enumerate(self.sealed):
            try:
                self.entries.append(open_entry(sealed))
            except Refused as refused:
                raise Refused(f"entries[{i}]: {refused}") from None
        return "every body is the one its leaf commits to"

    def chain(self) -> str:
        # (3) The entries are this link's, all from the first on, each naming the one before.
        before: Entry | None = None
        for i, entry in enumerate(self.entries):
            what = f"entries[{i}]: "
            if (entry.link_id, entry.trace_id) != (self.report.link_id, self.report.trace_id):
                raise Refused(what + "the leaf's link_id or trace_id is not the bundle's")
            if entry.step != i:
                raise Refused(what + f"step is {entry.step}, not {i}")
            if entry.prev != (before.sealed.leaf_hash if before else b""):
                raise Refused(what + "prev is not the leaf hash of the step before")
            if before and entry.sealed.index <= before.sealed.index:
                raise Refused(what + "the log index does not grow")
            if before and entry.at_us < before.at_us:
                raise Refused(what + "at is before that of the step before")
            before = entry
        return f"steps 0 to {len(self.entries) - 1}, unbroken"

    def log(self) -> str:
        # (4) Every leaf is in the tree of the checkpoint.
        for i, sealed in enumerate(self.sealed):
            what = f"entries[{i}]"
            root = merkle.root_by_proof(sealed.leaf_hash, sealed.index, self.checkpoint.tree_size, sealed.proof, what)
            if root != self.checkpoint.root_hash:
                raise Refused(f"{what}: the proof does not lead to the checkpoint's root")
        return f"every leaf is in the tree of {self.checkpoint.tree_size}"

    def checkpoint_signature(self) -> str:
        # (5) A trusted key, named as the origin, signed the checkpoint.
        key = check_signatures(self.checkpoint, self.trust.evidence_keys)
        return f"by {quoted(key.name)}, key {key.key_id.hex()}"

    def anchored(self) -> str:
        # (6) With a trusted ledger, and only then, the checkpoint is anchored on it.
        if self.trust.ledger is None:
            if self.anchor is not None:
                raise Refused("there is an anchor, but the trust file names no ledger")
            return "none, and the trust file asks for none"
        if self.anchor is None:
            raise Refused("there is no anchor, but the trust file names a ledger")
        self.report.anchor_height = check_anchor(self.anchor, self.checkpoint, self.trust.ledger)
        return f"in block {self.report.anchor_height} of {quoted(self.trust.ledger.chain_id)}"

    def intent(self) -> str:
        # (7) unsigned_tx ↔ the intent's fields ↔ tx_sign_hash ↔ signing_digest; the chain is trusted.
        self.intents = check_intents(self.entries, self.trust.chain_ids)
        if self.intents:
            last = self.intents[-1]
            self.report.chain_id = last.body.chain_id
            self.report.sender = "0x" + last.body.sender.hex()
            self.report.to = None if last.body.to is None else "0x" + last.body.to.hex()
            self.report.value_wei = str(last.body.value_wei)
            self.report.nonce = last.transaction.nonce
        said = f"{len(self.intents)}, each what its unsigned_tx says"
        # A fee bump is nobody's request: the client signed the first.
        if self.intents and (signed := self.intents[0].body.client_signature) is not None:
            self.report.client_key = signed.key_fingerprint
            said += f"; asked for under the client's key {quoted(signed.key_fingerprint)}"
        return said

    def signature(self) -> str:
        # (8) signing_digest ↔ signature ↔ sender ↔ raw_tx ↔ tx_hash.
        self.signed = check_transaction_signatures(self.entries, self.intents)
        if self.signed:
            self.report.tx_hash = "0x" + self.signed[-1].tx_hash.hex()
        return f"{len(self.signed)} by the sender"

    def submission(self) -> str:
        # (9) raw_tx ↔ request body ↔ response ↔ tx_hash.
        self.submissions = check_submissions(self.entries, self.signed)
        answered = sum(s.response is not None for s in self.submissions)
        return f"{len(self.submissions)} requests, {answered} responses"

    def block(self) -> str:
        # (10) Transaction and receipt ↔ tries ↔ header ↔ block hash, seen by enough nodes.
        self.mined = []
        proven: dict[tuple[object, ...], ProvenTx] = {}
        for position, _, inclusion in of_kind(self.entries, Inclusion):
            try:
                # Each status repeats the whole proof: what is equal in every byte is computed once.
                tx = proven.get(key := _proof_of(inclusion)) or proven.setdefault(key, prove_inclusion(inclusion))
                self.mined.append(Mined(position, inclusion, self._requested(tx.raw_tx, position), tx))
                self._check_agreement(inclusion)
            except Refused as refused:
                raise Refused(f"inclusion at step {position}: {refused}") from None
        if not self.mined:
            return "none"
        last = self.mined[-1]
        return f"transaction and receipt are in block {last.body.block_number}"

    def _requested(self, raw_tx: bytes, position: int) -> SignedTx:
        for submission in self.submissions:
            if submission.position < position and submission.signed.raw_tx == raw_tx:
                return submission.signed
        raise Refused("the proven transaction is not one that this link requested before")

    def _check_agreement(self, inclusion: Inclusion) -> None:
        names = inclusion.agreeing_nodes
        if len(set(names)) != len(names):
            raise Refused("agreeing_nodes repeats a name")
        needed = 1 if inclusion.status == "included" else self.trust.min_agreeing_nodes
        if len(names) < needed:
            raise Refused(f"{len(names)} nodes agree that it is {inclusion.status}, not {needed}")

    def state(self) -> str:
        # (11) Each entry may stand where it stands, and the link has come as far as asked.
        state = reached_state(self.entries, self.submissions, self.mined)
        self.report.state = state
        if state in ("INCLUDED", "SAFE", "FINALIZED"):
            last = self.mined[-1]
            self.report.tx_hash = "0x" + last.signed.tx_hash.hex()
            self.report.block_number = last.body.block_number
            self.report.block_hash = "0x" + last.body.block_hash.hex()
            self.report.receipt_status = last.proven.receipt_status
        check_required_state(state, self.required_state)
        return state

    def times(self) -> str:
        # (12) Times inside bodies agree with the log's and with one another.
        check_times(self.entries, self.submissions, self.mined)
        return "in order"


def _proof_of(inclusion: Inclusion) -> tuple[object, ...]:
    return (
        inclusion.block_number,
        inclusion.block_hash,
        inclusion.header_rlp,
        inclusion.transaction_index,
        tuple(inclusion.transaction_proof),
        inclusion.receipt_rlp,
        tuple(inclusion.receipt_proof),
        inclusion.logs_bloom,
        inclusion.sha3_uncles,
    )


# (name, the checks it needs, the check), in the order of their numbers.
_FLOW: tuple[tuple[str, frozenset[int], Callable[[_Verification], str]], ...] = (
    ("form", frozenset(), _Verification.form),
    ("commitments", frozenset({1}), _Verification.commitments),
    ("chain", frozenset({1, 2}), _Verification.chain),
    ("log", frozenset({1}), _Verification.log),
    ("checkpoint", frozenset({1}), _Verification.checkpoint_signature),
    ("anchor", frozenset({1}), _Verification.anchored),
    ("intent", frozenset({1, 2}), _Verification.intent),
    ("signature", frozenset({1, 2, 7}), _Verification.signature),
    ("submission", frozenset({1, 2, 7, 8}), _Verification.submission),
    ("block", frozenset({1, 2, 7, 8, 9}), _Verification.block),
    ("state", frozenset({1, 2, 7, 8, 9, 10}), _Verification.state),
    ("times", frozenset({1, 2, 7, 8, 9, 10}), _Verification.times),
)
