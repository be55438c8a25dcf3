"""What a route may ask of its request: the credential with its role, the client, the idempotency key."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.core.errors import Reason, WalletError
from services.gateway.credentials import Authenticator, Credential, Role, require_role
from services.gateway.personal import Client

_BEARER = HTTPBearer(
    auto_error=False, description="`gl_<id>_<secret>`, from `python -m services.gateway token create`."
)
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def _credential(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Credential:
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.authenticate(bearer.credentials if bearer is not None else "")


_Authenticated = Annotated[Credential, Depends(_credential)]


def _operator(credential: _Authenticated) -> Credential:
    require_role(credential, frozenset({Role.OPERATOR}))
    return credential


def _staff(credential: _Authenticated) -> Credential:
    require_role(credential, frozenset({Role.OPERATOR, Role.APPROVER}))
    return credential


# Operators create; approvers read all; auditors read transfers, links, bundles, traces, policy and status.
Operator = Annotated[Credential, Depends(_operator)]
Staff = Annotated[Credential, Depends(_staff)]
Reader = _Authenticated


def client_of(request: Request, credential: Credential) -> Client:
    agent = request.headers.get("user-agent", "")
    fingerprint = "sha256:" + hashlib.sha256(agent.encode()).hexdigest()[:32] if agent else ""
    return Client(credential.name, request.client.host if request.client else "", fingerprint)


def idempotency_key(value: str | None) -> str:
    """Raises WalletError: IDEMPOTENCY_KEY_MISSING, or INVALID_REQUEST for one that is no key."""
    if not value:
        reason = Reason.IDEMPOTENCY_KEY_MISSING
        raise WalletError(reason, reason.meaning, field="Idempotency-Key", rule="is required")
    if not _IDEMPOTENCY_KEY.fullmatch(value):
        rule = "1 to 255 visible ASCII characters"
        raise WalletError(Reason.INVALID_REQUEST, "not an idempotency key", field="Idempotency-Key", rule=rule)
    return value
