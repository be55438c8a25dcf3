"""What is measured. Generated from telemetry/registry.yaml; do not edit."""

from typing import Final

from services.runtime.measure import Measure

WALLET_SIGNATURE_DURATION: Final = Measure(
    "wallet.signature.duration",
    "histogram",
    "s",
    "Time that the token took for one signature.",
)
WALLET_SIGNATURES: Final = Measure(
    "wallet.signatures",
    "counter",
    "{signature}",
    "Signature operations that ended, whether the token was asked or not; a request that is repeated counts again.",
)
WALLET_POLICY_DENIALS: Final = Measure(
    "wallet.policy.denials",
    "counter",
    "{transfer}",
    "Transfers that the policy denied, as they go on the record; counted again where the log did not answer.",
)
WALLET_KEY_LOAD_FAILURES: Final = Measure(
    "wallet.key.load.failures",
    "counter",
    "{failure}",
    "Keys that could not be had for signing.",
)
WALLET_TOKEN_TIMEOUTS: Final = Measure(
    "wallet.token.timeouts",
    "counter",
    "{call}",
    "Token calls that took too long; the child that made them is killed.",
)
WALLET_TOKEN_WORKER_ENDS: Final = Measure(
    "wallet.token.worker.ends",
    "counter",
    "{process}",
    "Signing children that ended and are replaced.",
)
WALLET_EVIDENCE_APPEND_DURATION: Final = Measure(
    "wallet.evidence.append.duration",
    "histogram",
    "s",
    "Time from an append's arrival in the log to its durable commit, or refusal as a whole.",
)
WALLET_EVIDENCE_QUEUE_DEPTH: Final = Measure(
    "wallet.evidence.queue.depth",
    "updowncounter",
    "{entry}",
    "Entries that wait for the log's next commit.",
)
WALLET_EVIDENCE_REFUSALS: Final = Measure(
    "wallet.evidence.refusals",
    "counter",
    "{entry}",
    "Entries that the log's grammar refused, CLOCK_SKEW among them.",
)
WALLET_EVIDENCE_BLOCKED: Final = Measure(
    "wallet.evidence.blocked",
    "gauge",
    "{log}",
    "1 while appends are refused because the log is not what it was remembered as.",
)
WALLET_LEASE_TAKEOVERS: Final = Measure(
    "wallet.lease.takeovers",
    "counter",
    "{lease}",
    "Leases that this process took: of the log, or of a chain's broadcasting.",
)
WALLET_LEASE_LOSSES: Final = Measure(
    "wallet.lease.losses",
    "counter",
    "{lease}",
    "Leases that this process held and lost before it stopped.",
)
WALLET_NONCE_ALLOCATIONS_WITHOUT_LOCK: Final = Measure(
    "wallet.nonce.allocations_without_lock",
    "counter",
    "{allocation}",
    "Allocations that went through the row lock alone: Redis gave no lease.",
)
WALLET_NONCE_GAPS: Final = Measure(
    "wallet.nonce.gaps",
    "updowncounter",
    "{gap}",
    "Open nonce gaps, as the gateway that repairs them saw them last.",
)
WALLET_NONCE_GAP_FILLS: Final = Measure(
    "wallet.nonce.gap.fills",
    "counter",
    "{gap}",
    "Nonce gaps that were given a superseding transaction.",
)
WALLET_NONCE_LOSSES: Final = Measure(
    "wallet.nonce.losses",
    "counter",
    "{transfer}",
    "Transfers whose nonce somebody else's transaction has for good.",
)
WALLET_TRANSFERS: Final = Measure(
    "wallet.transfers",
    "counter",
    "{transfer}",
    "Transfers that came to a state, as this gateway entered it.",
)
WALLET_TRANSFER_BUMPS: Final = Measure(
    "wallet.transfer.bumps",
    "counter",
    "{transaction}",
    "Fee bumps that were signed and handed over.",
)
WALLET_TRANSFER_STALLS: Final = Measure(
    "wallet.transfer.stalls",
    "counter",
    "{transfer}",
    "Transfers that were marked as stalled.",
)
WALLET_DISPATCHER_QUEUE_DEPTH: Final = Measure(
    "wallet.dispatcher.queue.depth",
    "updowncounter",
    "{account}",
    "Accounts with due transfers that no lane works on yet.",
)
WALLET_NODE_DISAGREEMENTS: Final = Measure(
    "wallet.node.disagreements",
    "counter",
    "{call}",
    "Calls in which two nodes gave different answers.",
)
WALLET_NODE_FALSEHOODS: Final = Measure(
    "wallet.node.falsehoods",
    "counter",
    "{block}",
    "Blocks that a node told otherwise than they are: what it said does not hash to what the nodes agreed on.",
)
WALLET_NODE_REFUSALS: Final = Measure(
    "wallet.node.refusals",
    "counter",
    "{transaction}",
    "Transactions that a node refused, by meaning.",
)
WALLET_CHAIN_BREAKS: Final = Measure(
    "wallet.chain.breaks",
    "counter",
    "{chain}",
    "Times that a chain contradicted a final block and was stopped.",
)
WALLET_CHAIN_LAGS: Final = Measure(
    "wallet.chain.lags",
    "counter",
    "{chain}",
    "Times that a chain's clock was found far behind, and sending was held.",
)
WALLET_CHAIN_BROKEN: Final = Measure(
    "wallet.chain.broken",
    "gauge",
    "{chain}",
    "1 for a chain that is stopped until an operator mends it; nothing for others.",
)
WALLET_TRACESTORE_SPANS: Final = Measure(
    "wallet.tracestore.spans",
    "counter",
    "{span}",
    "Spans that tracestore committed and acknowledged; one that was stored before counts again.",
)
WALLET_TRACESTORE_QUEUE_DEPTH: Final = Measure(
    "wallet.tracestore.queue.depth",
    "updowncounter",
    "{span}",
    "Spans that wait for tracestore's next commit.",
)
WALLET_SPANS_SPOOLED: Final = Measure(
    "wallet.spans.spooled",
    "counter",
    "{span}",
    "Spans of signature operations that this process wrote to its spool.",
)
WALLET_SPANS_ACKNOWLEDGED: Final = Measure(
    "wallet.spans.acknowledged",
    "counter",
    "{span}",
    "Spans that the collectors acknowledged, once more for each repetition; those of dead processes among them.",
)
WALLET_SPANS_DROPPED: Final = Measure(
    "wallet.spans.dropped",
    "counter",
    "{span}",
    "Spans that are lost, by cause; docs/adr/0011 says what each means.",
)
WALLET_SPANS_QUEUE_DEPTH: Final = Measure(
    "wallet.spans.queue.depth",
    "updowncounter",
    "{span}",
    "Ended spans of signature operations that are not yet written to the spool.",
)
WALLET_SPOOL_SIZE: Final = Measure(
    "wallet.spool.size",
    "updowncounter",
    "By",
    "Spans that wait for a collector's answer: spools of this process and of dead ones that it sends.",
)
WALLET_SPOOL_DURABLE: Final = Measure(
    "wallet.spool.durable",
    "gauge",
    "1",
    "1 while ended spans outlive the process, 0 while they are in memory only.",
)
WALLET_SPOOL_ADOPTIONS: Final = Measure(
    "wallet.spool.adoptions",
    "counter",
    "{file}",
    "Spools of dead processes that this process took over.",
)
WALLET_SPOOL_TORN: Final = Measure(
    "wallet.spool.torn",
    "counter",
    "By",
    "Bytes of spools that are no whole frame, and were cut off.",
)
PROCESS_UPTIME: Final = Measure(
    "process.uptime",
    "gauge",
    "s",
    "Time since the process started its metrics. The name is OpenTelemetry's.",
)
