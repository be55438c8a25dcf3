"""The development chain as the demo uses it: its rich accounts, and what a contract says."""

from __future__ import annotations

import time
from typing import Any

import httpx

from services.core.abi import selector
from tools.demo.failure import DemoFailed

_MINED_WITHIN_S = 30.0


class DevelopmentChain:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(timeout=10.0, trust_env=False)
        self._url = url

    def call(self, method: str, *parameters: Any) -> Any:
        """Raises DemoFailed with the node's own message."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
        answer = self._http.post(self._url, json=request).raise_for_status().json()
        if "error" in answer:
            raise DemoFailed(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def fund(self, address: str, ether: int) -> None:
        """Send ether from the chain's first development account, and wait until it is mined."""
        rich = self.call("eth_accounts")[0]
        tx_hash = self.call("eth_sendTransaction", {"from": rich, "to": address, "value": hex(ether * 10**18)})
        give_up_at = time.monotonic() + _MINED_WITHIN_S
        while self.call("eth_getTransactionReceipt", tx_hash) is None:
            if time.monotonic() > give_up_at:
                raise DemoFailed("the funding transaction was not mined")
            time.sleep(0.1)

    def created_contract(self, tx_hash: str) -> str:
        address: str = self.call("eth_getTransactionReceipt", tx_hash)["contractAddress"]
        return address

    def token_balance(self, token: str, holder: str) -> int:
        data = "0x" + selector("balanceOf(address)").hex() + holder[2:].lower().rjust(64, "0")
        return int(self.call("eth_call", {"to": token, "data": data}, "latest"), 16)
