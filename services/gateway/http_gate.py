"""Around the whole HTTP application: trace, span, correlation headers, body limit, and an answer to every exception.

Pure ASGI: the span is decided by its name before the framework sees the request, so that the sampler's signature floor
applies, and a body that is too large is never read.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.core.content_digest import check_content_digest
from services.core.errors import Reason, WalletError
from services.gateway.problems import TRACEPARENT_KEY, problem_response
from services.gateway.telemetry import SIGNATURE_ROOTS, tracer
from services.runtime import attributes
from services.runtime.span_flags import as_ordinary
from services.runtime.telemetry import format_traceparent, new_traceparent, parse_traceparent

MAX_BODY_BYTES = 1024 * 1024
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Asked every second by machines: no spans.
_UNTRACED = frozenset({"/healthz", "/readyz"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

_SINGLE_HEADERS = ("Host", "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")

_log = logging.getLogger(__name__)


class RouteTemplate(NamedTuple):
    method: str
    path: re.Pattern[str]
    template: str


def route_templates(routes: list[Route]) -> list[RouteTemplate]:
    return [RouteTemplate(method, route.path_regex, route.path) for route in routes for method in route.methods or ()]


class HttpGate:
    def __init__(self, app: ASGIApp, templates: list[RouteTemplate]) -> None:
        self._app = app
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        span = self._start_span(scope, headers)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            await _Exchange(scope, headers, span).run(self._app, receive, send)

    def _start_span(self, scope: Scope, headers: Headers) -> Span:
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        template = next(
            (known.template for known in self._templates if known.method == method and known.path.match(scope["path"])),
            None,
        )
        # W3C Trace Context §3.3: more than one traceparent header is none.
        sent = headers.getlist("traceparent")
        remote = parse_traceparent(sent[0]) if len(sent) == 1 else None
        # A stranger's flag makes nothing a signature operation: the name of the span does.
        parent = trace.set_span_in_context(NonRecordingSpan(as_ordinary(remote)), Context()) if remote else Context()
        name = f"{method} {template}" if template else method
        if scope["path"] in _UNTRACED:
            span: Span = NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
        else:
            span = tracer.start_span(name, context=parent, kind=SpanKind.SERVER)
            span.set_attribute(attributes.HTTP_REQUEST_METHOD, method)
            if template:
                span.set_attribute(attributes.HTTP_ROUTE, template)
        own = span.get_span_context()
        if own.is_valid and own != remote:
            traceparent = format_traceparent(own)
        else:
            # Tracing is off: adopt the caller's trace id with a span id of our own.
            traceparent = new_traceparent()
            if remote:
                traceparent = f"00-{remote.trace_id:032x}-{traceparent[36:52]}-{int(remote.trace_flags) & 1:02x}"
        # A signature operation is sampled, whatever the caller's flag says.
        scope[TRACEPARENT_KEY] = traceparent[:53] + "01" if name in SIGNATURE_ROOTS else traceparent
        return span


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, headers: Headers, span: Span) -> None:
        self._scope = scope
        self._headers = headers
        self._span = span
        self._started = False

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def send_correlated(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._started = True
                self._correlate(message)
            await send(message)

        try:
            body = await self._read_body(receive)
            _check_headers(self._headers, self._scope["http_version"])
            check_content_digest(self._headers.getlist("content-digest"), body)
            await app(self._scope, _replay(body, receive), send_correlated)
        except _BodyTooLargeError:
            rule = f"at most {MAX_BODY_BYTES} bytes"
            refusal = WalletError(Reason.PAYLOAD_TOO_LARGE, "the body is too large", field="body", rule=rule)
            response = problem_response(self._scope, refusal)
            # What the client still sends is not read: the connection ends with this answer.
            response.headers["Connection"] = "close"
            await response(self._scope, receive, send_correlated)
        except _ClientGoneError:
            return
        except WalletError as error:
            await problem_response(self._scope, error)(self._scope, receive, send_correlated)
        except Exception:
            _log.exception("unhandled error in %s", self._scope["path"])
            if not self._started:
                refusal = WalletError(Reason.INTERNAL, Reason.INTERNAL.meaning)
                await problem_response(self._scope, refusal)(self._scope, receive, send_correlated)

    async def _read_body(self, receive: Receive) -> bytes:
        declared = self._headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
            raise _BodyTooLargeError
        if not declared and "transfer-encoding" not in self._headers:
            return b""  # RFC 9112 §6.3: a request with neither has no body
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise _BodyTooLargeError
            if not message.get("more_body", False):
                return bytes(body)

    def _correlate(self, message: Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        message["headers"] = headers.raw
        # A handler names the trace of the transfer that it answers with; else the request's own.
        headers.setdefault("traceparent", self._scope[TRACEPARENT_KEY])
        headers.setdefault("X-Trace-ID", headers["traceparent"][3:35])
        request_id = self._headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(request_id):
            headers["X-Request-ID"] = request_id
        status = message["status"]
        self._span.set_attribute(attributes.HTTP_RESPONSE_STATUS_CODE, status)
        reason = self._scope.get("goldenlink.reason")
        if reason:
            self._span.set_attribute(attributes.ERROR_TYPE, reason)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR, reason))


def _check_headers(headers: Headers, http_version: str) -> None:
    """Raises WalletError: INVALID_REQUEST for a header that stands twice: each reader would choose another."""
    # RFC 9112 §3.2: a request without Host is refused.
    if http_version != "1.0" and "host" not in headers:
        raise WalletError(Reason.INVALID_REQUEST, "Host is missing", field="Host", rule="is required")
    for name in _SINGLE_HEADERS:
        if len(headers.getlist(name)) > 1:
            raise WalletError(Reason.INVALID_REQUEST, f"{name} stands twice", field=name, rule="stands once")


class _BodyTooLargeError(Exception):
    pass


class _ClientGoneError(Exception):
    pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever comes: the disconnect."""
    pending = True

    async def next_message() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return next_message
