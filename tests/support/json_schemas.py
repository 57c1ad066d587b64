# SPDX-License-Identifier: GPL-2.0-only
"""Validation of kdamon's JSON by the schemas in docs/schemas."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).parents[2] / "docs/schemas"


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


SCHEMAS = {path.name: _load(path) for path in sorted(FOLDER.glob("*.json"))}


def objects_of(schema: Any) -> list[dict[str, Any]]:
    """The schemas of objects in ``schema``."""
    if isinstance(schema, list):
        return [found for one in schema for found in objects_of(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema] if isinstance(schema.get("properties"), dict) else []
    return own + [found for one in schema.values() for found in objects_of(one)]


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` that refuses fields which it does not describe; for others they may be of a newer kdamon."""
    schema = copy.deepcopy(schema)
    for one in objects_of(schema):
        one.setdefault("additionalProperties", False)
    return schema


_STRICT = {name: _strict(schema) for name, schema in SCHEMAS.items()}
_REGISTRY = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in _STRICT.items())


def validate(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Check ``document`` and return it: it is as the schema ``name``-1.json says, and has no other fields."""
    schema = _STRICT[f"{name}-1.json"]
    validator = Draft202012Validator(schema, registry=_REGISTRY)
    if "oneOf" in schema:
        # By the kind of line, so that an error is about that one.
        kinds = {kind["properties"]["type"]["const"]: f"#/$defs/{place}" for place, kind in schema["$defs"].items()}
        validator = validator.evolve(
            schema={"$id": schema["$id"], "$defs": schema["$defs"], "$ref": kinds[document["type"]]}
        )
    validator.validate(document)
    return document
