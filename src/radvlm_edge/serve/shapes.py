"""`response_format`: the JSON shapes whose validity and content can be guaranteed, and filling them.

The model is not made to write JSON. Every property is a question of its own, answered by a decision among the
allowed values (`Study.choose`) or by a text and what is parsed from it; the server writes the JSON, so it is
valid by construction. A schema this cannot be promised for is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from radvlm_edge.errors import RequestError
from radvlm_edge.runtime.answers import LABELS, Box

YES_NO = ("Yes", "No")
MOST_PROPERTIES = 32
NOTES = {"title", "description"}
BOX_FIELDS = ("label", "xyxy_fraction", "xyxy_pixels")
ACCEPTED = (
    "an object whose properties are booleans, string enums, strings, `labels` (array of strings) or `boxes` "
    f"(array of objects of {', '.join(BOX_FIELDS)}) is; see docs/serving.md"
)


@dataclass(frozen=True)
class Property:
    """One property of the answer's object."""

    name: str
    kind: str
    """`boolean`, `enum`, `text`, `labels` or `boxes`."""
    question: str
    choices: tuple[str, ...] = ()
    """Of a boolean or enum."""
    box_fields: tuple[str, ...] = ()
    null_label: bool = True
    """Whether a box's label may be null; else it is empty where the answer does not say."""


@dataclass(frozen=True)
class Shape:
    """An object to fill."""

    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Filled:
    """What the model said to a property's question."""

    text: str
    boxes: tuple[Box, ...] = ()
    labels: tuple[str, ...] = ()


def read_shape(response_format: object, question: str) -> Shape | None:
    """The shape an OpenAI `response_format` asks for; `None` for plain text.

    A property's `description` is the question put to the model, without one `question` is.
    Raises RequestError for a shape that cannot be guaranteed.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise RequestError("response_format is not an object; {'type': 'json_schema', ...} is")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        names = ("text", "labels", "boxes")
        return Shape(tuple(Property(name, name, question, box_fields=BOX_FIELDS) for name in names))
    if kind != "json_schema":
        raise RequestError(
            f"response_format type {kind!r} is unknown; text, json_object and json_schema are accepted"
        )
    holder = response_format.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError("response_format.json_schema.schema is missing or no object")
    return _object(schema, question)


def _object(schema: Mapping[str, Any], question: str) -> Shape:
    _only(schema, {"type", "properties", "required", "additionalProperties", "$schema"}, "the schema")
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        raise RequestError(f"the schema is no object with properties; {ACCEPTED}")
    if len(properties) > MOST_PROPERTIES:
        raise RequestError(
            f"the schema has {len(properties)} properties; at most {MOST_PROPERTIES} are asked"
        )
    _check_required(schema, set(properties), "the schema")
    shape = Shape(tuple(_property(name, part, question) for name, part in properties.items()))
    unasked = [one.name for one in shape.properties if one.choices and not _described(properties[one.name])]
    if len(unasked) > 1:
        raise RequestError(
            f"properties {', '.join(unasked)} would all answer the same question; "
            "put each one's own question into its description"
        )
    return shape


def _property(name: str, schema: object, question: str) -> Property:
    if not isinstance(schema, Mapping):
        raise RequestError(f"property {name!r} has no schema; {ACCEPTED}")
    asked = str(schema["description"]) if _described(schema) else question
    kind = schema.get("type")
    if "enum" in schema:
        _only(schema, {"type", "enum"}, f"property {name!r}")
        values = schema["enum"]
        if kind not in (None, "string") or not isinstance(values, list) or not _strings(values):
            raise RequestError(f"property {name!r}: an enum of other than strings is not chosen from")
        if any(value != value.strip() for value in values):
            raise RequestError(f"property {name!r}: a value begins or ends with blanks; leave them out")
        return Property(name, "enum", asked, tuple(values))
    if kind == "boolean":
        _only(schema, {"type"}, f"property {name!r}")
        return Property(name, "boolean", asked, YES_NO)
    if kind == "string":
        _only(schema, {"type"}, f"property {name!r}")
        return Property(name, "text", asked)
    if kind == "array" and name == "labels":
        _only(schema, {"type", "items"}, "property 'labels'")
        return _labels(schema, asked)
    if kind == "array" and name == "boxes":
        _only(schema, {"type", "items"}, "property 'boxes'")
        return _boxes(schema, asked)
    raise RequestError(f"property {name!r} of type {kind!r} cannot be guaranteed; {ACCEPTED}")


def _labels(schema: Mapping[str, Any], question: str) -> Property:
    items = schema.get("items", {"type": "string"})
    if not isinstance(items, Mapping) or items.get("type", "string") != "string":
        raise RequestError("property 'labels': its items are strings")
    _only(items, {"type", "enum"}, "the items of 'labels'")
    values = items.get("enum", LABELS)
    missing = set(LABELS) - set(values if _strings(values) else ())
    if missing:
        raise RequestError(
            f"property 'labels': its enum lacks {', '.join(sorted(missing))}, which the model may name"
        )
    return Property("labels", "labels", question)


def _boxes(schema: Mapping[str, Any], question: str) -> Property:
    items = schema.get("items")
    if items is None:
        return Property("boxes", "boxes", question, box_fields=BOX_FIELDS)
    if not isinstance(items, Mapping) or items.get("type") != "object":
        raise RequestError("property 'boxes': its items are objects")
    _only(items, {"type", "properties", "required", "additionalProperties"}, "the items of 'boxes'")
    fields = items.get("properties", {})
    if not isinstance(fields, Mapping) or not fields or not set(fields) <= set(BOX_FIELDS):
        raise RequestError(f"property 'boxes': its items have properties among {', '.join(BOX_FIELDS)}")
    _check_required(items, set(fields), "the items of 'boxes'")
    null_label = True
    for name, part in fields.items():
        where = f"{name!r} of 'boxes'"
        if not isinstance(part, Mapping):
            raise RequestError(f"{where} has no schema")
        if name == "label":
            _only(part, {"type"}, where)
            kinds = part.get("type", ["string", "null"])
            kinds = {kinds} if isinstance(kinds, str) else set(kinds if _strings(kinds) else ())
            if "string" not in kinds or not kinds <= {"string", "null"}:
                raise RequestError(f"{where} is a string, or null where the answer does not say")
            null_label = "null" in kinds
        else:
            _four(part, where, ("number",) if name == "xyxy_fraction" else ("integer", "number"))
    return Property(
        "boxes",
        "boxes",
        question,
        box_fields=tuple(name for name in BOX_FIELDS if name in fields),
        null_label=null_label,
    )


def _four(schema: Mapping[str, Any], where: str, kinds: tuple[str, ...]) -> None:
    """Check the schema of four coordinates."""
    _only(schema, {"type", "items", "minItems", "maxItems"}, where)
    items = schema.get("items", {"type": kinds[0]})
    fits = isinstance(items, Mapping) and items.get("type") in kinds
    lengths = schema.get("minItems", 4), schema.get("maxItems", 4)
    if schema.get("type") != "array" or not fits or lengths != (4, 4):
        raise RequestError(f"{where} is an array of four times {' or '.join(kinds)}")
    _only(items, {"type"}, f"the items of {where}")


def _check_required(schema: Mapping[str, Any], names: set[str], where: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not (_strings(required) or not required):
        raise RequestError(f"{where}: `required` is no list of names")
    if set(required) - names:
        raise RequestError(
            f"{where} requires {', '.join(sorted(set(required) - names))}, not described in it"
        )
    if schema.get("additionalProperties", False) not in (True, False):
        raise RequestError(f"{where}: additionalProperties is true or false here")


def _described(schema: object) -> bool:
    text = schema.get("description") if isinstance(schema, Mapping) else None
    return isinstance(text, str) and bool(text.strip())


def _strings(values: object) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all(isinstance(v, str) for v in values)


def _only(schema: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse keywords whose promise could not be kept."""
    strange = set(schema) - known - NOTES
    if strange:
        raise RequestError(f"{where} uses {', '.join(sorted(map(str, strange)))}; {ACCEPTED}")


def fill(shape: Shape, answers: Mapping[Property, Filled]) -> dict[str, Any]:
    """The object, from what the model said to each property's question."""
    return {one.name: _value(one, answers[one]) for one in shape.properties}


def _value(one: Property, filled: Filled) -> object:
    if one.kind == "boolean":
        return filled.text == YES_NO[0]
    if one.kind == "labels":
        return list(filled.labels)
    if one.kind == "boxes":
        return [_box(box, one) for box in filled.boxes]
    return filled.text


def _box(box: Box, one: Property) -> dict[str, Any]:
    whole = {
        "label": box.label if one.null_label else box.label or "",
        "xyxy_fraction": list(box.xyxy_fraction),
        "xyxy_pixels": list(box.xyxy_pixels),
    }
    return {name: whole[name] for name in one.box_fields}
