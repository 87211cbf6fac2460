"""Tiny wheels, an sdist that must be compiled, and a tiny bundle: a kit that installs in seconds."""

from __future__ import annotations

import base64
import dataclasses
import ensurepip
import hashlib
import importlib.metadata
import io
import platform
import sys
import tarfile
import zipfile
from pathlib import Path

from radvlm_edge.bundle import Bundle, BundleWriter, demo_bundle
from radvlm_edge.kit.targets import Target

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PIP = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
"""pip as a wheel; some systems' Pythons come without it."""
OWN = importlib.metadata.version("radvlm-edge")
LLAMA = importlib.metadata.version("llama-cpp-python")
COMPILING = Target(
    "compiling", platform.machine(), glibc=28, sources={"llama-cpp-python": ("tinybackend>=1",)}
)
"""This machine, as a Jetson is: llama-cpp-python comes as source, and its build asks for tinybackend."""
PLAIN = Target("plain", platform.machine(), glibc=28)
"""This machine, wheels alone."""

PROGRAM = """
import pathlib, sys
def main():
    print("RAN", *sys.argv[1:], file=sys.stderr)
    if sys.argv[1] == "verify":
        import llama_cpp
        bundle = pathlib.Path(sys.argv[2])
        assert "--self-test" in sys.argv
        return 1 if "BROKEN" in (bundle / "language" / "F16.gguf").read_text() else 0
"""
BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "llama_cpp_python-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as z:
        z.write("llama_cpp.py")
        z.writestr("llama_cpp_python-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        z.write("PKG-INFO", "llama_cpp_python-{version}.dist-info/METADATA")
        z.writestr("llama_cpp_python-{version}.dist-info/RECORD", "")
    return name
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, str] | None = None,
    *,
    requires: tuple[str, ...] = (),
    headers: tuple[str, ...] = ("License: MIT",),
    script: str = "",
    tag: str = "py3-none-any",
) -> Path:
    """A wheel with the metadata given, as PEP 427 has it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *headers]
    lines += [f"Requires-Dist: {one}" for one in requires]
    members = dict(files or {})
    members[f"{info}/METADATA"] = "\n".join(lines) + "\n"
    members[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    members[f"{info}/licenses/LICENSE"] = f"Licence of {name}\n"
    if script:
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script}\n"
    record = []
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in members.items():
            archive.writestr(zipfile.ZipInfo(inside), text)
            sha = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record.append(f"{inside},sha256={sha},{len(text.encode())}\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "".join(record) + f"{info}/RECORD,,\n")
    return path


def make_sdist(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}.tar.gz"
    info = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in {**files, "PKG-INFO": info}.items():
            member = tarfile.TarInfo(f"{stem}/{inside}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def make_wheels(folder: Path) -> Path:
    """Everything a kit needs that has nothing real in it but pip."""
    assert PIP is not None
    (folder / PIP.name).parent.mkdir(parents=True, exist_ok=True)
    (folder / PIP.name).write_bytes(PIP.read_bytes())
    requires = ("llama-cpp-python>=0.1", 'gone; python_version < "3"', 'tinydep>=1; extra == "serve"')
    make_wheel(
        folder,
        "radvlm-edge",
        OWN,
        {"tiny_edge.py": PROGRAM},
        requires=requires,
        headers=("License-Expression: Apache-2.0", "Provides-Extra: serve"),
        script="radvlm-edge = tiny_edge:main",
    )
    make_wheel(folder, "tinydep", "1.5", {"tinydep.libs/libtiny-0a.so.1": "not machine code"})
    make_wheel(folder, "tinydep", "0.9")
    kernels = {f"llama_cpp/lib/libggml-cpu-{cpu}.so": "GLIBC_2.17 GLIBC_2.4" for cpu in ("x64", "haswell")}
    tag = f"py3-none-linux_{platform.machine()}"
    make_wheel(folder, "llama-cpp-python", LLAMA, {"llama_cpp/__init__.py": "", **kernels}, tag=tag)
    backend = {"tinybackend.py": BACKEND.replace("{version}", LLAMA)}
    make_wheel(folder, "tinybackend", "1.0", backend)
    project = '[build-system]\nrequires = ["tinybackend"]\nbuild-backend = "tinybackend"\n'
    make_sdist(
        folder, "llama-cpp-python", LLAMA, {"pyproject.toml": project, "llama_cpp.py": "", "LICENSE": "MIT"}
    )
    return folder


def make_bundle(folder: Path, *, weights: str = "weights", redistributable: bool = True) -> Bundle:
    """A sealed bundle that no engine could open."""
    manifest = Bundle.open(demo_bundle()).manifest
    with BundleWriter(folder) as writer:
        writer.path("language/F16.gguf").write_text(weights)
        writer.add("language", "F16", "gguf", "language/F16.gguf")
        writer.path("vision/fp16.onnx").write_text("a graph")
        writer.add("vision", "fp16", "onnx", "vision/fp16.onnx")
        writer.write_manifest(
            dataclasses.replace(
                manifest,
                name="tiny",
                redistributable=redistributable,
                licence="Apache-2.0" if redistributable else "Credentialed, 1.5.0",
                artefacts=tuple(writer.artefacts),
                defaults={"language": "F16", "vision": "fp16"},
            )
        )
        return writer.seal()
