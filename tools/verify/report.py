"""What a verification found."""

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """One numbered check; `detail` says what was seen, or why it failed."""

    number: int
    name: str
    ok: bool
    detail: str


@dataclass(slots=True)
class Report:
    """The checks, and what the bundle says of its link: claims as far as they were read, proven if `accepted`.

    Hashes and addresses are lower-case 0x-hex. `value_wei` is a decimal string. `receipt_status` is 1 for a
    transaction that succeeded, 0 for one that reverted. `anchor_height` is a block of the ledger.
    `client_key` is the fingerprint of the key that the client signed its request with.
    """

    checks: list[Check] = field(default_factory=list)
    link_id: str | None = None
    trace_id: str | None = None
    state: str | None = None
    chain_id: str | None = None
    sender: str | None = None
    to: str | None = None
    value_wei: str | None = None
    nonce: int | None = None
    tx_hash: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    receipt_status: int | None = None
    entries: int | None = None
    log_origin: str | None = None
    tree_size: int | None = None
    anchor_height: int | None = None
    client_key: str | None = None

    @property
    def accepted(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """Members as the fields are named, `accepted` first."""
        return {"accepted": self.accepted, **asdict(self)}
