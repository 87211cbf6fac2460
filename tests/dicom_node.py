"""Films, peers and certificates the node is tested with; every peer is on loopback."""

from __future__ import annotations

import contextlib
import datetime
import io
import ipaddress
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from radvlm_edge.node.send import CLASSES
from radvlm_edge.node.settings import Peer, Settings

FILM = Path(__file__).parents[1] / "examples" / "chest.dcm"
PATIENCE_S = 240.0


def film(number: int = 0, **changes: Any) -> Dataset:
    """The example film under UIDs of its own; `changes` by keyword, `None` removes."""
    dataset = pydicom.dcmread(FILM)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid(entropy_srcs=["node test", keyword, str(number)]))
    for keyword, value in changes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def content(dataset: Dataset) -> bytes:
    """A film as a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def store(port: int, *films: Dataset, ae: str = "CR1", to: str = "RADVLM", tls: Any = None) -> list[Dataset]:
    """Send films over one association; the statuses that came back."""
    entity = AE(ae)
    entity.dimse_timeout = entity.network_timeout = PATIENCE_S
    for one in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in films}:
        entity.add_requested_context(*one)
    association = entity.associate(
        "127.0.0.1", port, ae_title=to, tls_args=(tls, "127.0.0.1") if tls else None
    )
    if not association.is_established:
        raise ConnectionError("the association was not established")
    try:
        return [association.send_c_store(one) for one in films]
    finally:
        association.release()


class Pacs:
    """A storage provider that remembers everything it was sent."""

    def __init__(self) -> None:
        self.got: list[Dataset] = []
        self.status = 0x0000
        self.senders: set[str] = set()

    def handle(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.senders.add(str(event.assoc.requestor.ae_title).strip())
        if self.status == 0:
            self.got.append(dataset)
        return self.status

    def of(self, uid: str, kind: str = "sr") -> list[Dataset]:
        """What came about a film, by the film's SOP Instance UID."""
        return [one for one in self.got if one.SOPClassUID == CLASSES[kind] and uid in referenced(one)]


def referenced(result: Dataset) -> set[str]:
    """SOP Instance UIDs a result refers to."""
    return {
        str(element.value) for element in result.iterall() if element.keyword == "ReferencedSOPInstanceUID"
    }


@contextlib.contextmanager
def pacs(
    port: int = 0, *, kinds: tuple[str, ...] = tuple(CLASSES), tls: Any = None
) -> Iterator[tuple[Pacs, int]]:
    """A PACS on loopback; its port with it."""
    taker, entity = Pacs(), AE("PACS")
    entity.supported_contexts = [build_context(CLASSES[kind], ImplicitVRLittleEndian) for kind in kinds]
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, taker.handle)], ssl_context=tls
    )
    assert server is not None
    try:
        yield taker, server.server_address[1]
    finally:
        entity.shutdown()


def free_port() -> int:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def settings(folder: Path, to: int, **more: Any) -> Settings:
    """A node on a free port that sends to loopback, in a hurry."""
    return Settings(
        **{
            "to": Peer("PACS", "127.0.0.1", to),
            "folder": folder / "node",
            "port": 0,
            "reserve_bytes": 0,
            "retry_s": (0.05, 0.2),
            "wait_s": 60.0,
            **more,
        }
    )


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def tool(name: str) -> str | None:
    """A program of Debian's dcmtk, dicom3tools or orthanc; `None` where it is not installed."""
    return shutil.which(name)


def dciodvfy_errors(result: bytes, folder: Path) -> list[str]:
    """What David Clunie's dciodvfy calls an error."""
    path = folder / "checked.dcm"
    path.write_bytes(result)
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert any("SR" in line or "PresentationState" in line or "SCImage" in line for line in lines), lines
    return [line for line in lines if line.startswith(("Error", "Abort"))]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, both PEM; it is its own authority."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert, secret


class Lines:
    """A process's stderr, read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._process = process
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip())

    def wait(self, words: str) -> str:
        """The first line with `words` in it."""
        until(
            lambda: any(words in line for line in self.lines) or self._process.poll() is not None,
            f"{words!r}: {self.lines[-5:]}",
        )
        found = [line for line in self.lines if words in line]
        assert found, self.lines
        return found[0]
