"""What a request may ask for: every parameter honoured or refused, every JSON shape kept."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radvlm_edge.errors import RequestError
from radvlm_edge.runtime.answers import LABELS, Box
from radvlm_edge.runtime.prompts import Turn

pytest.importorskip("starlette", reason="needs the extra `serve`")
from radvlm_edge.serve.questions import read_chat
from radvlm_edge.serve.shapes import Filled, fill, read_shape

PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
USER = {"role": "user", "content": [IMAGE, {"type": "text", "text": "any effusion?"}]}


def chat(**changes: Any) -> Any:
    request = {"model": "m", "messages": [USER], **changes}
    return read_chat(json.dumps(request).encode(), "m")


def test_a_plain_request() -> None:
    asked = chat(temperature=0, n=1, seed=7, user="u", max_tokens=5, stop=None, tools=[])
    assert (asked.film, asked.question, asked.max_tokens, asked.stream) == (
        b"\x89PNG\r\n\x1a\n",
        "any effusion?",
        5,
        False,
    )
    assert asked.turns == () and asked.study is None and asked.shape is None and asked.choices is None


def test_conversations_and_every_way_to_name_a_film() -> None:
    again = [USER, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Where?"}]
    asked = chat(messages=again)
    assert asked.turns == (Turn("any effusion?", "Yes."),) and asked.question == "Where?"
    for part, film, study in [
        ({"type": "image_url", "image_url": {"url": "study:abc"}}, None, "abc"),
        ({"type": "file", "file": {"file_id": "abc"}}, None, "abc"),
        ({"type": "file", "file": {"file_data": "data:application/dicom;base64,AAAA"}}, b"\0\0\0", None),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff,II%2A%00"}}, b"II*\0", None),
    ]:
        asked = chat(messages=[{"role": "user", "content": [part, {"type": "text", "text": "a?"}]}])
        assert (asked.film, asked.study) == (film, study)


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": "gpt-4"}, "'gpt-4' is not here"),
        ({"temperature": 0.7}, "temperature 0.7: answers are greedy"),
        ({"n": 2}, "n 2"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frobnicate": 1}, "frobnicate: not supported"),
        ({"stream": "yes"}, "stream is neither"),
        ({"max_tokens": 0}, "max_tokens '0'"),
        ({"max_tokens": True}, "max_tokens"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"top_logprobs": 3, "logprobs": True}, "guided_choice only"),
        ({"guided_choice": "Yes"}, "no list of texts"),
        ({"guided_choice": ["a", "b"], "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"logprobs": True, "response_format": {"type": "json_object"}}, "radvlm.decisions"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER]}, "without a system prompt"),
        ({"messages": [{"role": "user", "content": "no film"}]}, "0 films"),
        ({"messages": [{"role": "user", "content": [IMAGE, IMAGE]}]}, "2 films"),
        ({"messages": [USER, {"role": "assistant", "content": "Yes."}]}, "end with the user's question"),
        ({"messages": [USER, USER]}, "'assistant' is its turn"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}, USER]}, "the first message alone"),
        ({"messages": [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "b"}]}, "is"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({"messages": [{"role": "user", "content": 3}]}, "no content"),
        ({"messages": [3]}, "role 'None'"),
        ({"messages": image("https://example.org/film.png")}, "nothing is ever fetched"),
        ({"messages": image("file:///etc/passwd")}, "nothing is ever fetched"),
        ({"messages": image("data:text/html;base64,AAAA")}, "'text/html'"),
        ({"messages": image("data:image/png;base64,A A!")}, "no base64"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_in_one_line(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=".") as refused:
        chat(**changes)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "role", "content", "text", "image_url", "url", "file", "user"]), inner
    )), max_leaves=12))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_no_json_makes_parsing_fail_otherwise(value: Any) -> None:
    for changes in (
        {"messages": value},
        {"messages": [USER], "response_format": value},
        {"guided_choice": value},
    ):
        try:
            chat(**changes)
        except RequestError as error:
            assert error.status in (400, 404)


FOUR = st.fixed_dictionaries(
    {"type": st.just("array"), "items": st.just({"type": "number"})},
    optional={"minItems": st.just(4), "maxItems": st.just(4)},
)
BOX = st.fixed_dictionaries(
    {},
    optional={
        "label": st.sampled_from([{"type": "string"}, {"type": ["string", "null"]}]),
        "xyxy_fraction": FOUR,
        "xyxy_pixels": FOUR | st.just({"type": "array", "items": {"type": "integer"}}),
    },
).filter(bool)


@st.composite
def objects(draw: st.DrawFn, fields: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(fields)
    schema = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {**schema, "additionalProperties": False}


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    names = st.text("abcdefghij_", min_size=1, max_size=6)
    values = st.lists(st.text("abcxyz", min_size=1, max_size=5), min_size=2, max_size=5, unique=True)
    described = st.text(min_size=1, max_size=9).filter(str.strip)
    kinds = [{"type": "boolean"}, {"type": "string"}]
    plain = st.sampled_from(kinds) | values.map(lambda enum: {"enum": enum, "type": "string"})
    fields = draw(st.dictionaries(names, plain, max_size=5))
    properties = {name: {**part, "description": draw(described)} for name, part in fields.items()}
    if draw(st.booleans()):
        items = st.sampled_from([{"type": "string"}, {"enum": [*LABELS, "other"]}])
        properties["labels"] = {"type": "array", "items": draw(items)}
    if draw(st.booleans()) or not properties:
        properties["boxes"] = {"type": "array", "items": draw(objects(BOX))}
    return draw(objects(st.just(properties)))


@given(schemas(), st.data())
@settings(max_examples=100, deadline=None)
def test_every_accepted_shape_is_filled_validly(schema: dict[str, Any], data: st.DataObject) -> None:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shape = read_shape(asked, "any effusion?")
    assert shape is not None
    box = Box(data.draw(st.none() | st.just("left lung")), (0.0, 0.25, 0.5, 1.0), (0, 10, 20, 41))
    answers = {}
    for one in shape.properties:
        text = data.draw(st.sampled_from(one.choices)) if one.choices else data.draw(st.text())
        answers[one] = Filled(text, (box,), LABELS[:3])
    filled = json.loads(json.dumps(fill(shape, answers)))
    jsonschema.validate(filled, schema)
    assert list(filled) == list(schema["properties"])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "integer"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}},
        {"type": "object", "properties": {"a": {"enum": [1, 2]}}},
        {"type": "object", "properties": {"a": {"enum": [" a", "b"]}}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}},
        {"type": "object", "properties": {"a": {"$ref": "#/x"}}},
        {"type": "object", "properties": {"labels": {"type": "array", "items": {"enum": ["edema"]}}}},
        {"type": "object", "properties": {"labels": {"type": "array", "minItems": 1}}},
        {"type": "object", "properties": {"boxes": {"type": "array", "items": {"type": "string"}}}},
        {"type": "object", "properties": {"others": {"type": "array", "items": {"type": "string"}}}},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(40)}},
    ],
)
def test_shapes_that_cannot_be_promised_are_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        read_shape({"type": "json_schema", "json_schema": {"schema": schema}}, "a?")
