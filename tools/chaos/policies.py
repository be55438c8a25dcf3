"""The policies of a run. The second takes the first's place while the load goes on, and asks for one approval more."""

from __future__ import annotations

import yaml

# What is above waits for approvals. Amounts tell transfers apart, so it is above any number of them.
THRESHOLD_WEI = 10**9
# Longer than faults keep a transfer from its signature, and what nobody decides about ends within it.
APPROVAL_VALID_S = 90
BURN_ADDRESS = "0x000000000000000000000000000000000000dead"
_CHAIN_ID = "eip155:31337"
_PER_TRANSFER_WEI = 10**21


def policy_document(version: int) -> str:
    """YAML; `version` is 1 or 2, and as many approvals are asked for."""
    document = {
        "version": version,
        "name": "chaos",
        "rules": {
            "chains": {"allow": [_CHAIN_ID]},
            "destinations": {"allow": "any", "deny": [BURN_ADDRESS]},
            "assets": {
                f"{_CHAIN_ID}/native": {
                    "per_transfer": str(_PER_TRANSFER_WEI),
                    "approvals": {"above": str(THRESHOLD_WEI), "count": version, "valid_s": APPROVAL_VALID_S},
                },
            },
        },
    }
    return yaml.safe_dump(document, sort_keys=False)
