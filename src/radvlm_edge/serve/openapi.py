"""The API's description (OpenAPI 3.1), and the same as a page that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment

from radvlm_edge.serve.questions import MEDIA_TYPES, MOST_MESSAGES
from radvlm_edge.serve.shapes import MOST_PROPERTIES

Schema = dict[str, Any]
STUDY = {
    "name": "study",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "Id that the upload returned.",
}


def document() -> dict[str, Any]:
    """The description that `/openapi.json` serves."""
    from radvlm_edge import __version__

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "radvlm-edge",
            "version": __version__,
            "description": "Ask a chest film questions, on this machine. For research, not for diagnosis.",
        },
        "security": [{"token": []}, {}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "ChatRequest": _chat_request(),
                "ChatCompletion": _completion(),
                "Study": _study(),
                "Error": _error(),
            },
        },
    }


def _paths() -> dict[str, Any]:
    films = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES}
    upload = [
        _query("render", {"enum": ["voi", "minmax", "mimic"]}, "How pixels become 8-bit grey."),
        _query("frame", {"type": "integer", "minimum": 0}, "Frame of a multi-frame file."),
    ]
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "/v1/chat/completions": {
            "post": _operation(
                "Ask about a film. Cancelled as soon as the client leaves.",
                {"200": _json("The answer, or with `stream` its chunks.", "ChatCompletion", stream)},
                [400, 401, 404, 408, 413, 415, 429, 500, 503, 504],
                body={"application/json": {"schema": _ref("ChatRequest")}},
            )
        },
        "/v1/studies": {
            "post": _operation(
                "Look at a film once; ask about it by its id afterwards.",
                {"201": _json("The film was looked at.", "Study")},
                [400, 401, 408, 413, 415, 429, 500, 503, 504],
                body=films,
                parameters=upload,
            )
        },
        "/v1/studies/{study}": {
            "get": _operation(
                "A film's facts and what was asked about it.",
                {"200": _json("The study.", "Study")},
                [401, 404],
            ),
            "delete": _operation(
                "Forget a film and its history.", {"204": {"description": "Forgotten."}}, [401, 404]
            ),
            "parameters": [STUDY],
        },
        "/v1/studies/{study}/film.png": {
            "get": _operation(
                "The film as the model saw it, 8-bit grey.",
                {"200": {"description": "PNG.", "content": {"image/png": {}}}},
                [401, 404],
            ),
            "parameters": [STUDY],
        },
        "/v1/models": {"get": _plain("The model that answers, its bundle and its tasks.", [401])},
        "/v1/models/{model}": {
            "get": _plain("The same model alone.", [401, 404]),
            "parameters": [{**STUDY, "name": "model", "description": "Its id."}],
        },
        "/healthz": {"get": _plain("Whether the service answers (no token needed).", [503])},
        "/metrics": {
            "get": _operation(
                "Counts and times for Prometheus; nothing of any film.",
                {"200": {"description": "Text format 0.0.4.", "content": {"text/plain": {}}}},
                [401],
            )
        },
    }


def _operation(
    summary: str,
    good: dict[str, Any],
    bad: list[int],
    *,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {**good, **{str(code): _json(MEANING[code], "Error") for code in bad}},
    }
    for code in {"429"} & set(operation["responses"]):
        operation["responses"][code]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    if parameters is not None:
        operation["parameters"] = parameters
    return operation


MEANING = {
    400: "Something asked for cannot be honoured; the message says what is accepted.",
    401: "The token is missing or wrong.",
    404: "No such study or model.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The Content-Type is not read here.",
    429: "Too many wait already; Retry-After says when to ask again.",
    500: "The service failed.",
    503: "The service is stopping.",
    504: "Not answered within the time limit.",
}


def _plain(summary: str, bad: list[int]) -> dict[str, Any]:
    good = {"200": {"description": "JSON.", "content": {"application/json": {"schema": {"type": "object"}}}}}
    return _operation(summary, good, bad)


def _query(name: str, schema: Schema, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, name: str, also: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref(name)}, **(also or {})},
    }


def _object(properties: dict[str, Schema], required: list[str] | None = None, says: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if says:
        schema["description"] = says
    return schema


def _says(kind: str, description: str, **more: Any) -> Schema:
    return {"type": kind, "description": description, **more}


def _chat_request() -> Schema:
    return _object(
        {
            "model": _says("string", "As /v1/models names it."),
            "messages": _says(
                "array",
                "User and assistant in turn, user last. The first holds exactly one film: an image_url part "
                "whose url is a data URL (DICOM, PNG, JPEG, TIFF) or `study:ID`, or a file part with "
                "file_data or file_id.",
                items={"type": "object"},
                minItems=1,
                maxItems=MOST_MESSAGES,
            ),
            "stream": _says("boolean", "Send the answer as it is written (server-sent events)."),
            "stream_options": _object({"include_usage": {"type": "boolean"}}),
            "max_completion_tokens": _says(
                "integer", "Longest answer, within the service's own limit.", minimum=1
            ),
            "max_tokens": _says("integer", "The same, as older clients say.", minimum=1),
            "guided_choice": _says(
                "array",
                "Decide between these beginnings of an answer, in one step.",
                items={"type": "string"},
                minItems=2,
                maxItems=16,
            ),
            "logprobs": _says("boolean", "Log probabilities of the answer's tokens, or of the decision."),
            "top_logprobs": _says(
                "integer", "With guided_choice: of how many choices.", minimum=0, maximum=20
            ),
            "response_format": _says(
                "object",
                "text; json_object (text, labels, boxes); or json_schema: an object of at most "
                f"{MOST_PROPERTIES} booleans, string enums, strings, `labels` and `boxes`. A property's "
                "description is the question put to the model.",
            ),
        },
        ["model", "messages"],
    )


def _completion() -> Schema:
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": _object({}, says="Token counts; cached_tokens of the prompt were not run again."),
            "radvlm": _object(
                {
                    "labels": _says("array", "Findings the answer affirms.", items={"type": "string"}),
                    "boxes": _says("array", "Boxes in the answer.", items={"type": "object"}),
                    "decisions": _says("array", "Choices with probabilities.", items={"type": "object"}),
                    "timing_ms": {"type": "object"},
                    "bundle": {"type": "object"},
                    "warnings": {"type": "array", "items": {"type": "string"}},
                    "notice": {"type": "string"},
                },
            ),
        },
        ["id", "object", "created", "model", "choices", "usage", "radvlm"],
    )


def _study() -> Schema:
    return _object(
        {
            "id": _says("string", "Whoever has it may see the film."),
            "object": {"const": "study"},
            "created": {"type": "integer"},
            "film": _object(
                {"height": {"type": "integer"}, "width": {"type": "integer"}, "render": {"type": "string"}},
                ["height", "width", "render"],
            ),
            "image_tokens": {"type": "integer"},
            "crops": {"type": "integer"},
            "cache": {"enum": ["hit", "miss", "off"]},
            "warnings": {"type": "array", "items": {"type": "string"}},
            "timing_ms": {"type": "object"},
            "history": _says("array", "Questions asked by this id, and answers.", items={"type": "object"}),
        },
        ["id", "object", "created", "film", "warnings", "history"],
    )


def _error() -> Schema:
    inner = _object({"message": {"type": "string"}, "type": {"type": "string"}}, ["message", "type"])
    return _object({"error": inner}, ["error"])


PAGE = Path(__file__).parent / "page" / "api.html.j2"


def docs_page(doc: dict[str, Any]) -> bytes:
    """The description as HTML."""
    environment = Environment(autoescape=True)
    environment.filters["name"] = lambda reference: str(reference).rpartition("/")[2]
    return environment.from_string(PAGE.read_text("utf-8")).render(doc=doc).encode()
