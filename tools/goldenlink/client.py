"""The gateway's HTTP API, as the commands use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.signing import RequestSigner, configured_signer

STACK_FILE = Path("build/stack.json")
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class Client:
    """Calls that answer JSON or end the command."""

    def __init__(self, url: str, token: str, signer: RequestSigner | None = None) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            auth=signer,
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def get(self, path: str, **query: Any) -> Any:
        return self._json("GET", path, params={name: value for name, value in query.items() if value is not None})

    def find(self, path: str) -> Any:
        """What is there, or None."""
        try:
            return self.get(path)
        except Failure as failure:
            if failure.document.get("status") == 404:
                return None
            raise

    def get_bytes(self, path: str) -> bytes:
        return self._send("GET", path).content

    def post(self, path: str, body: dict[str, Any] | None = None, idempotency_key: str | None = None) -> Any:
        headers: dict[str, str] = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", path, json=body, headers=headers)

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Server-sent events until the server ends them; taken up again where they broke off."""
        last_id = None
        for _ in range(100):
            headers: dict[str, str] = {"Last-Event-ID": last_id} if last_id else {}
            try:
                with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(None, connect=5.0)) as reply:
                    if reply.status_code != 200:
                        reply.read()
                        raise _refusal(reply)
                    for line in reply.iter_lines():
                        name, _, value = line.partition(": ")
                        if name == "id":
                            last_id = value
                        elif name == "data":
                            yield json.loads(value)
                return
            except httpx.TransportError:
                continue
        raise Failure(Exit.UNAVAILABLE, "the gateway's event stream breaks off again and again")

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._send(method, path, **options).json()

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            reply = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Failure(Exit.UNAVAILABLE, f"the gateway cannot be reached: {type(error).__name__}") from None
        if reply.is_error:
            raise _refusal(reply)
        return reply


def connect(url: str | None, token_file: Path | None, role: str = "operator") -> Client:
    """The gateway that the options name, else the one of `make up` in this directory, with its token of `role`."""
    if url is None or token_file is None:
        try:
            stack = json.loads(STACK_FILE.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise Failure(
                Exit.USAGE, f"no gateway: set GOLDENLINK_URL and GOLDENLINK_TOKEN_FILE, or run 'make up' ({STACK_FILE})"
            ) from None
        url = url or stack["gateway_url"]
        token_file = token_file or Path(stack["token_files"][role])
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Failure(Exit.USAGE, f"the token file cannot be read: {error.strerror}") from None
    return Client(url, token, configured_signer())


def _refusal(reply: httpx.Response) -> Failure:
    try:
        problem = reply.json()
    except ValueError:
        problem = {"status": reply.status_code, "detail": f"HTTP {reply.status_code}"}
    lines = [f"{problem.get('reason', 'ERROR')}: {problem.get('detail', '')}"]
    for error in problem.get("errors", []):
        place = f"[{error['index']}] " if error.get("index") is not None else ""
        lines.append(f"  {place}{error['field']}: {error['rule']}")
    if problem.get("trace_id"):
        lines.append(f"  trace {problem['trace_id']}")
    code = Exit.UNAVAILABLE if reply.status_code in (429, 502, 503, 504) else Exit.REFUSED
    return Failure(code, "\n".join(lines), problem)
