"""Inputs of the fuzzing: valid files and requests, and seeded ways to damage them.

An input is named by kind, seed and number alone: `make(kind, seed, number)` always gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from radvlm_edge.benchmarks.fuzz_films import dicom_files, odd_header, odd_png, pictures
from radvlm_edge.benchmarks.fuzz_values import NUMBERS, TEXTS
from radvlm_edge.bundle import MANIFEST, demo_bundle

HEADER_BYTES = 2048
"""Most damage falls here: what is behind it are pixels."""
GGUF, GGUF_HEAD_BYTES = "Q4_K_M.gguf", 1 << 16
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x",
    "\x00",
    "A" * 3000, "\ud800", [], {}, [[]], [None], {"": None}, [0] * 50, "study:", "data:,",
    "data:image/png;base64,",
)  # fmt: skip


def make(kind: str, seed: int, number: int) -> bytes:
    """The input of a kind with a number."""
    rng = random.Random(f"{kind} {seed} {number}")
    seeds = CORPORA[kind]()
    content = rng.choice(seeds)
    shaped = SHAPED.get(kind)
    if shaped is not None and rng.random() < 0.6:
        content = shaped(content, rng)
        if rng.random() < 0.7:
            return content
    return damage(content, rng, seeds)


def damage(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change, insert, remove and repeat bytes in one to eight places."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if not data:
            break
        top = min(len(data), HEADER_BYTES) if rng.random() < 0.8 else len(data)
        at, how = rng.randrange(top), rng.randrange(9)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.randrange(256)
        elif how in (2, 3):
            form = rng.choice(("<H", "<I", "<Q", ">H", ">I"))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, rng.choice(NUMBERS) & (256**size - 1))
        elif how == 4:
            del data[at : at + rng.choice((1, 2, 4, 8, 100))]
        elif how == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif how == 6:
            length = rng.choice((2, 8, 64, 500))
            data[at:at] = data[at : at + length] * rng.choice((1, 3, 20))
        elif how == 7:
            del data[at:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at : at + 64] = other[start : start + 64]
    return bytes(data)


@cache
def manifests() -> list[bytes]:
    """The demonstration bundle's bundle.json, its artefacts replaced by `stand_in`, which hash at once."""
    record = json.loads((demo_bundle() / MANIFEST).read_bytes())
    for artefact in record["artefacts"]:
        content = stand_in(artefact["path"])
        artefact |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    return [json.dumps(record, indent=1).encode()]


def stand_in(path: str) -> bytes:
    """Content of a file of the fuzzed bundle."""
    return f"stands for {path}".encode()


@cache
def gguf_heads() -> list[bytes]:
    """The demonstration model's smallest GGUF, as far as its tensor data."""
    return [(demo_bundle() / "language" / GGUF).read_bytes()[:GGUF_HEAD_BYTES]]


STUDY = "study:STUDY"
"""Stands for the study the service under test holds."""


@cache
def requests() -> list[bytes]:
    """Chat requests of every kind the service takes."""
    tiny = f"data:image/png;base64,{base64.b64encode(pictures()[0]).decode()}"
    schema = {
        "type": "object",
        "properties": {
            "effusion": {"type": "boolean", "description": "Is there effusion?"},
            "side": {"enum": ["Left", "Right"], "description": "Which side?"},
            "labels": {"type": "array", "items": {"type": "string"}},
            "boxes": {
                "type": "array",
                "items": {"type": "object", "properties": {"label": {"type": "string"}}},
            },
        },
        "required": ["effusion"],
    }
    extras: tuple[dict[str, Any], ...] = (
        {},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"guided_choice": ["Yes", "No"], "logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
        {"max_tokens": 1, "logprobs": True, "temperature": 0, "n": 1, "seed": 7, "user": "somebody"},
    )
    found = []
    for url in (STUDY, tiny):
        for extra in extras:
            image = {"type": "image_url", "image_url": {"url": url}}
            first = {"role": "user", "content": [image, {"type": "text", "text": "any effusion?"}]}
            turns = [first, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Sure?"}]
            alone = "guided_choice" in extra or "response_format" in extra
            asked = ([first],) if alone else ([first], turns)
            found += [
                json.dumps({"model": "radvlm-nano", "messages": messages, **extra}).encode()
                for messages in asked
            ]
    return found


def odd_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with strange values at one to three places, or places removed, doubled or renamed."""
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = rng.choice(places)
        how = rng.randrange(10)
        if how < 6:
            holder[key] = _odd_value(holder[key], rng)
        elif how == 6:
            del holder[key]
        elif how == 7 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif how == 8 and isinstance(holder, list):
            holder += holder[:200]
        else:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    return json.dumps(tree).encode()


def _odd_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 1000, 0, 2**31, float(value)))
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(TEXTS) + value[at + rng.choice((0, 1, 4)) :]
    return rng.choice(VALUES)


def _places(tree: Any) -> Any:
    """(holder, key) of every value in a JSON tree."""
    waiting = [tree]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])


@cache
def raw_requests() -> list[bytes]:
    """Whole HTTP/1.1 requests as they are on the wire."""
    body = requests()[0]
    film = pictures()[0]
    host = b"Host: 127.0.0.1\r\n"
    return [
        b"GET /healthz HTTP/1.1\r\n" + host + b"\r\n",
        b"GET /v1/studies/STUDY?a=b HTTP/1.1\r\n" + host + b"Accept: */*\r\n\r\n",
        b"GET /page/app.js HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body,
        b"POST /v1/studies?render=voi&frame=0 HTTP/1.1\r\n" + host + b"Content-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n" % len(film) + film,
        b"POST /v1/studies HTTP/1.1\r\n" + host + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
        b"\r\n%x\r\n" % len(film) + film + b"\r\n0\r\n\r\n",
    ]


def odd_ascii(content: bytes, rng: random.Random) -> bytes:
    """Text with one of its numbers or words replaced."""
    found = list(re.finditer(rb"[0-9]+|[A-Za-z/-]{3,}", content[:HEADER_BYTES]))
    one = rng.choice(found)
    new = rng.choice((b"", b"0", b"-1", b"4294967296", b"9" * 400, one[0] * 2, b"%00", b"\xff\xfe", b"..//"))
    return content[: one.start()] + new + content[one.end() :]


CORPORA: dict[str, Callable[[], list[bytes]]] = {
    "dicom": dicom_files,
    "picture": pictures,
    "bundle": manifests,
    "gguf": gguf_heads,
    "chat": requests,
    "http": raw_requests,
}
SHAPED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "dicom": odd_header,
    "picture": odd_png,
    "bundle": odd_json,
    "chat": odd_json,
    "http": odd_ascii,
}
