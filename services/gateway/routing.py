"""What every route shares: strict JSON in, JSON models out, and the gateway behind the application."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Path, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from services.gateway.gateway import Gateway

ResourceId = Annotated[str, Path(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]


class _StrictRequest(Request):
    """JSON without repeated members: what they mean would depend on the reader."""

    async def json(self) -> Any:
        try:
            # RFC 8259 §8.1: UTF-8 and nothing else; of bytes `loads` would take UTF-16 and UTF-32 as well.
            text = (await self.body()).decode("utf-8")
            return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError:
            raise json.JSONDecodeError("it is not UTF-8", "", 0) from None
        except RecursionError:
            raise json.JSONDecodeError("it is nested too deep", "", 0) from None
        except ValueError:
            raise json.JSONDecodeError("a number has too many digits", "", 0) from None


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise json.JSONDecodeError("a member stands twice in an object", "", 0)
    return members


def _no_constant(name: str) -> Any:
    raise json.JSONDecodeError(f"{name} is not JSON", "", 0)


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def json_response(view: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status, headers, "application/json")
