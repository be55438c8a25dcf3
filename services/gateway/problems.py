"""Every refusal over HTTP: problem details (RFC 9457) with the reason, the trace id, and each field with its rule."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from services.core.errors import Code, Reason, WalletError

MEDIA_TYPE = "application/problem+json"
# Where the HTTP gate keeps the request's own traceparent.
TRACEPARENT_KEY = "goldenlink.traceparent"

_STATUS_OF_CODE = {
    Code.CANCELLED: 503,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
_STATUS_OF_REASON = {
    Reason.PAYLOAD_TOO_LARGE: 413,
    # draft-ietf-httpapi-idempotency-key-header §2.7: reuse with another payload.
    Reason.IDEMPOTENCY_KEY_REUSED: 422,
    # A peer refuses this gateway: nothing that the client could mend.
    Reason.CALLER_NOT_ALLOWED: 500,
}
_REASON_OF_STATUS = {
    401: Reason.UNAUTHENTICATED,
    403: Reason.ROLE_REQUIRED,
    404: Reason.NOT_FOUND,
    413: Reason.PAYLOAD_TOO_LARGE,
}
_FIELD_DETAILS = ("field", "rule", "index")


class FieldError(BaseModel):
    field: str = Field(description="Path of the field or name of the header; empty for the body as a whole.")
    rule: str = Field(description="The rule that it breaks.")
    index: int | None = Field(default=None, description="Place in the batch, from 0.")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:goldenlink:reason:INVALID_AMOUNT"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="Path of the request.")
    reason: str = Field(description="A name of docs/ERRORS.md.")
    trace_id: str
    errors: list[FieldError] = Field(default=[], description="Each field that breaks a rule.")
    details: dict[str, str] = Field(default={}, description="Further figures, by name.")


class FieldErrors(WalletError):
    """A refusal that names several fields, or several items of a batch."""

    def __init__(self, reason: Reason, errors: list[FieldError]) -> None:
        first = errors[0]
        message = f"{first.field}: {first.rule}" if first.field else first.rule
        super().__init__(reason, message if len(errors) == 1 else f"{message} (and {len(errors) - 1} more)")
        self.errors = errors


def status_of(error: WalletError) -> int:
    return _STATUS_OF_REASON.get(error.reason, _STATUS_OF_CODE[error.reason.code])


def problem_response(scope: Scope, error: WalletError, status: int | None = None) -> Response:
    status = status or status_of(error)
    if isinstance(error, FieldErrors):
        errors = error.errors
    elif "field" in error.details or "rule" in error.details:
        errors = [_field_error(error)]
    else:
        errors = []
    problem = Problem(
        type=f"urn:goldenlink:reason:{error.reason.name}",
        title=error.reason.meaning,
        status=status,
        detail=error.message,
        instance=scope["path"],
        reason=error.reason.name,
        trace_id=scope.get(TRACEPARENT_KEY, "")[3:35],
        errors=errors,
        details={name: str(value) for name, value in error.details.items() if name not in _FIELD_DETAILS},
    )
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110 §11.6.1
    if error.reason.code is Code.UNAVAILABLE:
        headers["Retry-After"] = "1"
    scope["goldenlink.reason"] = error.reason.name
    return Response(problem.model_dump_json(exclude_none=True), status, headers, MEDIA_TYPE)


def _field_error(error: WalletError) -> FieldError:
    index = str(error.details.get("index", ""))
    return FieldError(
        field=str(error.details.get("field", "")),
        rule=str(error.details.get("rule", error.message)),
        index=int(index) if index.isdecimal() else None,
    )


def from_http_exception(error: HTTPException) -> WalletError:
    """404 of an unknown path, 405, and what the framework refuses by itself."""
    reason = _REASON_OF_STATUS.get(error.status_code, Reason.INVALID_REQUEST)
    messages = {404: "no such path", 405: "the path does not take this method"}
    return WalletError(reason, messages.get(error.status_code, str(error.detail)))


def from_validation_error(error: RequestValidationError) -> FieldErrors:
    """Each field by name with its rule; the reason is that of the first."""
    found = list(error.errors())
    reason = Reason.__members__.get(found[0]["type"], Reason.INVALID_REQUEST)
    return FieldErrors(reason, [_broken_rule(entry) for entry in found])


def _broken_rule(entry: dict[str, Any]) -> FieldError:
    source, *path = entry["loc"]
    index = None
    if source == "body" and path[:1] == ["transfers"] and len(path) > 1 and isinstance(path[1], int):
        index, path = path[1], path[2:]
    context = entry.get("ctx", {})
    field = _dotted([*path, *([context["field"]] if "field" in context else [])])
    if entry["type"] == "extra_forbidden":
        rule = "is not a field of this request"
        if field == "nonce":
            rule = "the suite assigns the nonce; a caller never supplies it"
    elif entry["type"] == "json_invalid":
        field, rule = "", f"the body is JSON: {context.get('error', 'malformed')}"
    elif entry["type"] == "missing":
        rule = "is required"
    else:
        rule = entry["msg"]
    return FieldError(field=field, rule=rule, index=index)


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(part) for part in path)
