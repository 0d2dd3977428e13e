# SPDX-License-Identifier: Apache-2.0
"""GET /v1/openapi.json: the API described for programs, made from the same types and routes that serve it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

import memsculpt
from memsculpt.doors.api.schema import ErrorView

_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path, as the document names it."""

    path: str
    method: str
    name: str
    summary: str
    answers: type[msgspec.Struct]
    takes: type[msgspec.Struct] | None = None


def describe(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    listed = list(operations)
    types = [*(one.answers for one in listed), *(one.takes for one in listed if one.takes is not None), ErrorView]
    refs, components = msgspec.json.schema_components(types, ref_template=_REF)
    ref_of = dict(zip(types, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in listed:
        paths.setdefault(one.path, {})[one.method.lower()] = _describe_one(one, ref_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "memsculpt", "version": memsculpt.__version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": components},
    }


def _describe_one(one: Operation, ref_of: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "responses": {
            "200": {"description": "OK", "content": _json(ref_of[one.answers])},
            "default": {"description": "place, problem, fix", "content": _json(ref_of[ErrorView])},
        },
    }
    if "{" in one.path:
        name = one.path.partition("{")[2].partition("}")[0]
        kind = "integer" if name == "id" else "string"
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": kind}}]
    if one.takes is not None:
        described["requestBody"] = {"required": True, "content": _json(ref_of[one.takes])}
    return described


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
