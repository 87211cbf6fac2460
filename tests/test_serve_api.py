"""The service as its clients meet it: OpenAI's own client, HTTP, and the reader's answers as the truth."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from radvlm_edge.runtime.film import load_film
from radvlm_edge.runtime.reader import Options, Reader

pytest.importorskip("starlette", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="comes with the official client (extra `dev`)")
openai = pytest.importorskip("openai", reason="the official client (extra `dev`)")
from openapi_spec_validator import validate  # noqa: E402
from tests.service import Running, serving  # noqa: E402

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
MODEL = "radvlm-nano"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader.open(options=Options(max_tokens=64, threads=1)) as opened:
        yield opened


@pytest.fixture(scope="module")
def truth() -> Iterator[Any]:
    """The example film in a reader of its own."""
    with Reader.open(options=Options(max_tokens=64, threads=1)) as opened:
        yield opened.look(FILM)


@pytest.fixture
def running(reader: Reader) -> Iterator[Running]:
    with serving(reader) as service:
        yield service


def data_url(content: bytes, media: str = "application/dicom") -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def message(question: str, url: str | None = None) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": url or data_url(FILM.read_bytes())}}
    return {"role": "user", "content": [image, {"type": "text", "text": question}]}


def upload(running: Running, content: bytes | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/dicom"}
    reply = httpx.post(
        f"{running.url}/v1/studies", content=content or FILM.read_bytes(), headers=headers, timeout=60
    )
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def test_openais_client_gets_the_readers_answer_and_looks_once(running: Running, truth: Any) -> None:
    client = running.client()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    for index, question in enumerate(("any effusion?", "Is there cardiomegaly?")):
        reply = client.chat.completions.create(model=MODEL, messages=[message(question)], temperature=0)
        wanted = truth.ask(question)
        assert reply.choices[0].message.content == wanted.text
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.completion_tokens == wanted.tokens
        assert reply.usage.prompt_tokens == wanted.prompt_tokens > truth.prefix_tokens
        run = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
        assert run > truth.layout.image_tokens if index == 0 else run < 40
        assert reply.model_extra["radvlm"]["labels"] == list(wanted.labels)
    assert running.metric("radvlm_films_total") == 1


def test_a_stream_is_the_same_answer_in_pieces(running: Running, truth: Any) -> None:
    question = "Where is the left lung located in this Chest X-ray?"
    stream = running.client().chat.completions.create(
        model=MODEL, messages=[message(question)], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    wanted = truth.ask(question)
    assert "".join(filter(None, pieces)) == wanted.text
    assert len(list(filter(None, pieces))) > 10
    last, counts = chunks[-2:]
    assert last.choices[0].finish_reason == "stop"
    (box,) = last.model_extra["radvlm"]["boxes"]
    assert tuple(box["xyxy_pixels"]) == wanted.boxes[0].xyxy_pixels and box["label"] == "left lung"
    assert counts.usage.completion_tokens == wanted.tokens and not counts.choices


def test_token_limits_are_kept_and_said(running: Running) -> None:
    ask = running.client().chat.completions.create
    reply = ask(model=MODEL, messages=[message("Provide a report.")], max_tokens=3)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3
    beyond = ask(model=MODEL, messages=[message("Provide a report.")], max_completion_tokens=10**6)
    assert beyond.usage.completion_tokens <= 64


def test_a_conversation_is_the_readers(running: Running, reader: Reader) -> None:
    ask = running.client().chat.completions.create
    first = ask(model=MODEL, messages=[message("any effusion?")]).choices[0].message.content
    said = [message("any effusion?"), {"role": "assistant", "content": first}]
    said.append({"role": "user", "content": "Where?"})
    second = ask(model=MODEL, messages=said).choices[0].message.content
    with Reader.open(options=Options(max_tokens=64, threads=1)) as own:
        study = own.look(FILM)
        assert [study.say("any effusion?").text, study.say("Where?").text] == [first, second]


def test_choices_come_with_their_log_probabilities(running: Running, truth: Any) -> None:
    reply = running.client().chat.completions.create(
        model=MODEL, messages=[message("any effusion?")], logprobs=True, top_logprobs=2,
        extra_body={"guided_choice": ["Yes", "No"]},
    )  # fmt: skip
    wanted = truth.choose("any effusion?")
    (token,) = reply.choices[0].logprobs.content
    assert reply.choices[0].message.content == token.token == wanted.text
    shares = {one.token: np.exp(one.logprob) for one in token.top_logprobs}
    assert shares.keys() == wanted.probabilities.keys()
    for text, share in wanted.probabilities.items():
        assert shares[text] == pytest.approx(share * wanted.mass, rel=1e-4)
    (decision,) = reply.model_extra["radvlm"]["decisions"]
    assert sum(decision["probabilities"].values()) == pytest.approx(1)
    assert decision["calibrated"] == pytest.approx(wanted.calibrated)
    assert decision["calibrated_on"] == wanted.confidence.calibrated_on


def test_free_answers_come_with_their_tokens_log_probabilities(running: Running, truth: Any) -> None:
    reply = running.client().chat.completions.create(
        model=MODEL, messages=[message("any effusion?")], logprobs=True
    )
    tokens = reply.choices[0].logprobs.content
    wanted = truth.ask("any effusion?")
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == wanted.text
    ours = [logprob for _, logprob in wanted.token_logprobs]
    assert [token.logprob for token in tokens] == pytest.approx(ours, abs=1e-3)


def test_a_schema_is_filled_as_the_model_decides(running: Running, truth: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "effusion": {"type": "boolean", "description": "any effusion?"},
            "size": {"enum": ["Small", "Large"], "description": "How large is the heart?"},
            "finding": {"type": "string", "description": "any effusion?"},
            "labels": {"type": "array", "items": {"type": "string"}, "description": "any effusion?"},
            "boxes": {"type": "array", "description": "Where is the left lung located in this Chest X-ray?"},
        },
        "required": ["effusion", "size", "finding", "labels", "boxes"],
        "additionalProperties": False,
    }
    reply = running.client().chat.completions.create(
        model=MODEL,
        messages=[message("Fill the form.")],
        response_format={"type": "json_schema", "json_schema": {"name": "form", "schema": schema}},
    )
    filled = json.loads(reply.choices[0].message.content)
    effusion = truth.ask("any effusion?")
    assert filled["effusion"] is (truth.choose("any effusion?").text == "Yes")
    assert filled["size"] == truth.choose("How large is the heart?", ["Small", "Large"]).text
    assert filled["finding"] == effusion.text and filled["labels"] == list(effusion.labels)
    assert filled["boxes"][0]["label"] == "left lung" and len(filled["boxes"][0]["xyxy_fraction"]) == 4
    assert len(reply.model_extra["radvlm"]["decisions"]) == 2


def test_a_study_is_uploaded_once_asked_often_and_forgotten(running: Running) -> None:
    study = upload(running)
    client = running.client()
    parts = [{"type": "text", "text": "any effusion?"}, {"type": "file", "file": {"file_id": study["id"]}}]
    by_id = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    by_url = client.chat.completions.create(
        model=MODEL, messages=[message("any effusion?", f"study:{study['id']}")]
    )
    assert by_id.choices[0].message.content == by_url.choices[0].message.content
    assert by_id.usage.prompt_tokens_details.cached_tokens > study["image_tokens"]
    url = f"{running.url}/v1/studies/{study['id']}"
    history = httpx.get(url).json()["history"]
    assert [one["question"] for one in history] == ["any effusion?"] * 2
    assert history[0]["text"] == by_id.choices[0].message.content
    picture = np.asarray(Image.open(io.BytesIO(httpx.get(f"{url}/film.png").content)))
    assert np.array_equal(picture, load_film(FILM).pixels)
    assert upload(running)["id"] != study["id"] and running.metric("radvlm_films_total") == 1
    assert httpx.delete(url).status_code == 204
    assert httpx.get(url).status_code == 404
    with pytest.raises(openai.NotFoundError, match="no such study"):
        client.chat.completions.create(model=MODEL, messages=[message("a?", f"study:{study['id']}")])


def test_films_of_any_kind_and_what_is_none(running: Running) -> None:
    ask = running.client().chat.completions.create
    buffer = io.BytesIO()
    Image.fromarray(load_film(FILM).pixels).save(buffer, "PNG")
    png = message("any effusion?", data_url(buffer.getvalue(), "image/png"))
    assert ask(model=MODEL, messages=[png]).choices[0].message.content
    for content, complaint in [(b"no film", "neither DICOM"), (FILM.read_bytes()[:3000], "the film")]:
        with pytest.raises(openai.BadRequestError, match=complaint):
            ask(model=MODEL, messages=[message("a?", data_url(content))])
    with pytest.raises(openai.BadRequestError, match="the question is empty"):
        ask(model=MODEL, messages=[message(" ")])


def test_many_clients_at_once_each_get_their_own_answer(running: Running, truth: Any) -> None:
    study = upload(running)
    questions = ["any effusion?", "Is there cardiomegaly?", "any pneumothorax?", "Is there edema?"] * 3
    client = running.client()

    def ask(question: str) -> str:
        asked = [message(question, f"study:{study['id']}")]
        return str(client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, questions))
    assert answers == [truth.ask(question).text for question in questions]


def test_only_those_with_the_token_may_ask(reader: Reader) -> None:
    token = "0123456789abcdef" * 2
    with serving(reader, token=token) as running:
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/page/viewer.js"):
            assert httpx.get(running.url + path).status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/studies/x", "/page", "//healthz"):
            assert httpx.get(running.url + path).status_code == 401, path
        for wrong in ("none", token[:-1], token + "0"):
            with pytest.raises(openai.AuthenticationError):
                running.client(api_key=wrong).models.list()
        assert [model.id for model in running.client(api_key=token).models.list()] == [MODEL]


def test_pages_of_others_may_not_ask(running: Running) -> None:
    get = httpx.get
    port = running.url.rpartition(":")[2]
    assert get(f"{running.url}/v1/models", headers={"Origin": "http://evil.example"}).status_code == 403
    assert get(f"{running.url}/v1/models", headers={"Origin": running.url}).status_code == 200
    assert get(f"{running.url}/v1/models", headers={"Host": f"evil.example:{port}"}).status_code == 403
    assert get(f"{running.url}/v1/models", headers={"Host": f"localhost:{port}"}).status_code == 200
    text = {"Content-Type": "text/plain"}
    form = httpx.post(f"{running.url}/v1/chat/completions", content=b"{}", headers=text)
    assert form.status_code == 415
    headers = get(running.url).headers
    assert (
        "access-control-allow-origin" not in headers
        and "default-src 'none'" in (headers["content-security-policy"])
    )


def test_the_api_describes_itself(running: Running) -> None:
    document = httpx.get(f"{running.url}/openapi.json").json()
    validate(document)
    page = httpx.get(f"{running.url}/docs").text
    assert all(path in page for path in document["paths"]) and "http" not in page.replace("http-equiv", "")
    routes = {"/v1/chat/completions", "/v1/models", "/v1/studies", "/healthz", "/metrics"}
    assert routes <= document["paths"].keys()


MARK = "ZQMARKERQZ"


def test_nothing_of_a_films_header_or_question_gets_out(
    reader: Reader, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = pydicom.dcmread(FILM)
    for element in dataset:
        if element.VR in ("PN", "LO", "SH", "LT", "ST") and element.keyword != "ViewPosition":
            element.value = MARK
    dataset.PatientComments = MARK
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    broken = buffer.getvalue()[:-2000]
    with caplog.at_level(logging.DEBUG), serving(reader) as running:
        study = upload(running, buffer.getvalue())
        ask = running.client().chat.completions.create
        ask(model=MODEL, messages=[message(f"any {MARK}?", f"study:{study['id']}")])
        with pytest.raises(openai.BadRequestError):
            ask(model=MODEL, messages=[message(MARK, data_url(broken))])
        metrics = httpx.get(f"{running.url}/metrics").text
    assert MARK not in json.dumps(study) and MARK not in metrics and study["id"] not in metrics
    ours = [record for record in caplog.records if record.name.startswith(("radvlm", "uvicorn"))]
    assert not any(MARK in record.getMessage() or study["id"] in record.getMessage() for record in ours)
    assert MARK not in "".join(capfd.readouterr())


def test_a_fault_is_told_without_its_text(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(MARK)

    with serving(reader) as running:
        study = upload(running)
        monkeypatch.setattr(type(reader), "_answer", fail)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as told:
                running.client().chat.completions.create(
                    model=MODEL, messages=[message("a?", f"study:{study['id']}")], stream=stream
                )
            assert MARK not in str(told.value)
        monkeypatch.undo()
        asked = [message("any effusion?", f"study:{study['id']}")]
        assert running.client().chat.completions.create(model=MODEL, messages=asked).choices
    logged = [record for record in caplog.records if record.name.startswith(("radvlm", "uvicorn"))]
    assert len(logged) == 2 and all("ValueError at fail" in one.getMessage() for one in logged)
    assert not any(MARK in record.getMessage() or record.exc_info for record in logged)


def test_https(reader: Reader, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path)
    with serving(reader, tls_cert=certificate, tls_key=key) as running:
        assert running.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=certificate)
        assert httpx.get(f"{running.url}/healthz", verify=trusting).json() == {"status": "ok"}
        with pytest.raises(httpx.TransportError):
            httpx.get(running.url.replace("https", "http") + "/healthz")


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2)).add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem, secret = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, secret
