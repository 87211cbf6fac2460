"""What a kit is made of, as a CycloneDX 1.6 bill of materials: packages, their libraries, the model."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from radvlm_edge.bundle import Bundle, Manifest
from radvlm_edge.integrity import digest
from radvlm_edge.kit.distributions import Distribution

SPEC = "1.6"
BUNDLE_REF = "bundle"


def sbom(
    identity: Mapping[str, str],
    files: Iterable[Distribution],
    needs: Mapping[str, set[str]],
    bundle: Bundle,
) -> dict[str, Any]:
    """The bill of materials; the same kit gives the same one, so it holds no time and no random number.

    `identity` has the kit's `name`, `version` and `target`.
    """
    chosen = sorted(files, key=lambda one: one.path.name)
    components = [_package(one) for one in chosen] + [_model(bundle)]
    top = {
        "type": "application",
        "bom-ref": "kit",
        "name": identity["name"],
        "version": identity["version"],
        "properties": [{"name": "radvlm-edge:target", "value": identity["target"]}],
    }
    refs: dict[str, list[str]] = {}
    for one in chosen:
        refs.setdefault(one.name, []).append(_ref(one))
    dependencies = [{"ref": "kit", "dependsOn": sorted([*(_ref(one) for one in chosen), BUNDLE_REF])}]
    dependencies += [
        {
            "ref": _ref(one),
            "dependsOn": sorted(ref for name in needs.get(one.name, ()) for ref in refs.get(name, [])),
        }
        for one in chosen
    ]
    body = {"metadata": {"component": top}, "components": components, "dependencies": dependencies}
    content = hashlib.sha256(repr(body).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        **body,
    }


def licences(text: str) -> list[dict[str, Any]]:
    """CycloneDX's licence choice for what metadata says: an SPDX expression if it is one, else the words."""
    if not text:
        return []
    try:
        return [{"expression": canonicalize_license_expression(text)}]
    except InvalidLicenseExpression:
        return [{"license": {"name": text}}]


def _ref(one: Distribution) -> str:
    """A reference no other component has: several wheels of one version differ in their file names."""
    return one.path.name


def _package(one: Distribution) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _ref(one),
        "name": one.name,
        "version": str(one.version),
        "purl": f"pkg:pypi/{one.name}@{str(one.version).replace('+', '%2B')}",
        "hashes": [{"alg": "SHA-256", "content": digest(one.path)}],
        "licenses": licences(one.licence),
        "properties": [{"name": "radvlm-edge:file", "value": f"wheels/{one.path.name}"}],
    }
    parts = [
        {
            "type": "file",
            "bom-ref": f"{_ref(one)}#{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
        }
        for name, content in sorted(one.libraries().items())
    ]
    return component | ({"components": parts} if parts else {})


def _model(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "type": "machine-learning-model",
        "bom-ref": BUNDLE_REF,
        "name": manifest.name,
        "version": bundle.sha256[:12],
        "description": "Research use only: no answer is a diagnosis.",
        "hashes": [{"alg": "SHA-256", "content": bundle.sha256}],
        "licenses": licences(manifest.licence),
        "modelCard": _card(manifest),
        "properties": [
            {"name": "radvlm-edge:redistributable", "value": _said(manifest.redistributable)},
            {"name": "radvlm-edge:demonstration", "value": _said(manifest.demonstration)},
            {
                "name": "radvlm-edge:checkpoint-sha256",
                "value": str(manifest.source.get("sha256", "not recorded")),
            },
        ],
        "components": [
            {
                "type": "file",
                "bom-ref": f"{BUNDLE_REF}#{artefact.path}",
                "name": artefact.path,
                "description": f"{artefact.role}, {artefact.precision}, {artefact.backend}",
                "hashes": [{"alg": "SHA-256", "content": artefact.sha256}],
            }
            for artefact in manifest.artefacts
        ],
    }


def _card(manifest: Manifest) -> dict[str, Any]:
    return {
        "modelParameters": {
            "task": "questions about chest radiographs",
            "architectureFamily": "LLaVA-OneVision",
            "modelArchitecture": str(manifest.source.get("architecture", "not recorded")),
            "inputs": [{"format": "chest radiograph"}, {"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "considerations": {
            "technicalLimitations": ["Not a medical device. MODEL_CARD.md has what was measured."],
        },
    }


def _said(value: bool) -> str:
    return "true" if value else "false"
