"""The ASGI application: routes, refusals as problem details, OpenAPI, and the HTTP gate around all of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from services.core.errors import Reason, WalletError
from services.gateway.access import IDEMPOTENCY_KEY
from services.gateway.credentials import Authenticator
from services.gateway.decision_routes import router as decision_router
from services.gateway.gateway import Gateway
from services.gateway.http_gate import HttpGate, route_templates
from services.gateway.problems import (
    MEDIA_TYPE,
    Problem,
    from_http_exception,
    from_validation_error,
    problem_response,
)
from services.gateway.routes import router

_TITLE = "Golden Link"
_VERSION = "1"
_DESCRIPTION = (
    "A transfer is accepted with 202 and carried to a finalized block; every step is an entry of a tamper-evident log. "
    "Every response carries `X-Trace-ID` and `traceparent`; `X-Request-ID` is passed through. "
    "Amounts are decimal strings of wei. Every refusal is problem details (RFC 9457). "
    "`Content-Digest` (RFC 9530) is checked where it is sent; a credential with a registered key signs what it changes "
    "(RFC 9421, docs/API-SIGNATURES.md)."
)
# The HTTP gate makes the one server span. FastAPI's own would begin a second trace below it, obey the caller's flag
# and carry the client's address.
_NO_TELEMETRY_OF_ITS_OWN: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def create_app(gateway: Gateway, docs_assets_dir: Path | None = None, public_scheme: str = "http") -> ASGIApp:
    app = FastAPI(
        title=_TITLE,
        version=_VERSION,
        description=_DESCRIPTION,
        docs_url=None if docs_assets_dir else "/docs",
        redoc_url=None,
        telemetry=_NO_TELEMETRY_OF_ITS_OWN,
    )
    if docs_assets_dir:
        _serve_docs(app, docs_assets_dir)
    app.state.gateway = gateway
    app.state.authenticator = Authenticator(gateway.store)
    app.state.public_scheme = public_scheme
    app.include_router(router)
    app.include_router(decision_router)
    app.add_exception_handler(WalletError, _on_wallet_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    # The HTTP gate logs it: the framework raises it again once this answer is sent.
    app.add_exception_handler(Exception, _on_unexpected)
    app.openapi = _openapi  # type: ignore[method-assign]
    _openapi()
    routes = [route for route in [*app.routes, *router.routes, *decision_router.routes] if isinstance(route, Route)]
    return HttpGate(app, route_templates(routes))


def _serve_docs(app: FastAPI, assets_dir: Path) -> None:
    """/docs from files of our own, so that it works where no CDN is reached."""
    app.mount("/docs/assets", StaticFiles(directory=assets_dir), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=_TITLE,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )


async def _on_wallet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WalletError)
    return problem_response(request.scope, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(request.scope, from_validation_error(error))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    return problem_response(request.scope, WalletError(Reason.INTERNAL, Reason.INTERNAL.meaning))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = problem_response(request.scope, from_http_exception(error), error.status_code)
    response.headers.update(error.headers or {})
    return response


@cache
def _openapi() -> dict[str, Any]:
    """FastAPI's document with our refusals in place of its own, and the key header required where it is."""
    routes = [*router.routes, *decision_router.routes]
    document = get_openapi(title=_TITLE, version=_VERSION, description=_DESCRIPTION, routes=routes)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem
    refusal = {
        "description": "Problem details; `reason` is a name of docs/ERRORS.md.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = refusal
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "Idempotency-Key":
                    parameter["required"] = True
                    parameter["schema"] = {"type": "string", "pattern": IDEMPOTENCY_KEY.pattern}
    return document
