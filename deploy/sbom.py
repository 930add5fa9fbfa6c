"""The bill of materials of a kit or a release: CycloneDX 1.6, one component for each package."""

from __future__ import annotations

import email
import hashlib
import importlib.metadata
import uuid
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCHEMA = SchemaVersion.V1_6
_CLASSIFIER = "License :: "
_LONGEST = 100
"""Characters of a licence field; a longer one is the licence's text, not its name."""


@dataclass(frozen=True)
class Wheel:
    """A wheel's canonical name, version, file name, SHA-256 (hex), licence and requirements.

    File name and SHA-256 are empty for a package that is only named, not handed over.
    """

    name: str
    version: str
    file: str
    sha256: str
    licence: str | None
    requires: tuple[str, ...]
    extras: tuple[str, ...]


def read(path: Path) -> Wheel:
    """Read a wheel's own metadata."""
    with zipfile.ZipFile(path) as archive:
        inside = next(
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith(".dist-info/METADATA")
        )
        about = email.message_from_bytes(archive.read(inside))
    return _wheel(about, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def installed(own: Wheel, extras: list[str]) -> list[Wheel]:
    """Return ``own`` and what it needs with ``extras``, as it is installed here.

    Raises:
        ValueError: if something is not installed.
    """
    found = {own.name: own}
    waiting = [(own.name, extra) for extra in ["", *extras]]
    done = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for requirement in map(Requirement, found[name].requires):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            if needed not in found:
                try:
                    about = importlib.metadata.metadata(needed)
                except importlib.metadata.PackageNotFoundError:
                    raise ValueError(f"{needed}, which {name} needs, is not installed") from None
                found[needed] = _wheel(about, "", "")
            new = {(needed, one) for one in ("", *requirement.extras)} - done
            done |= new
            waiting += new
    return sorted(found.values(), key=lambda wheel: wheel.name)


def _wheel(about: Message, file: str, sha256: str) -> Wheel:
    return Wheel(
        canonicalize_name(about["Name"]),
        about["Version"],
        file,
        sha256,
        _licence(about),
        tuple(about.get_all("Requires-Dist", ())),
        tuple(about.get_all("Provides-Extra", ())),
    )


def _licence(about: Message) -> str | None:
    """Return the expression, the classifiers or the short licence field, or None."""
    if about["License-Expression"]:
        return str(about["License-Expression"])
    field = str(about["License"] or "").strip()
    if field and "\n" not in field and len(field) <= _LONGEST and field != "UNKNOWN":
        return field
    lines = [str(line) for line in about.get_all("Classifier", ())]
    named = [line.split(" :: ")[-1] for line in lines if line.startswith(_CLASSIFIER)]
    return " AND ".join(named) if len(named) == 1 else ", ".join(named) or None


def document(
    wheels: list[Wheel], extras: list[str], epoch: int, name: str = "kit", folder: str = "wheels/"
) -> str:
    """Return the document as JSON text, checked against the schema; same input, same text.

    Args:
        wheels: Privet's own, and the packages that it needs.
        extras: of Privet, with which it needs them.
        epoch: seconds since 1970, the document's time.
        name: ``kit`` or ``release``.
        folder: where the wheels lie beside the document.

    Raises:
        ValueError: if what was made does not fit the schema.
    """
    factory = LicenseFactory()
    components = {wheel.name: _component(wheel, factory, folder) for wheel in wheels}
    own = next(wheel for wheel in wheels if wheel.name == "privet")
    kit = Component(
        type=ComponentType.APPLICATION, name=f"privet-{name}", version=own.version, bom_ref=name,
        description=f"Privet with extras: {', '.join(extras) or 'none'}",
    )  # fmt: skip
    seed = "\n".join(sorted(f"{wheel.file} {wheel.sha256}" for wheel in wheels))
    bom = Bom(components=components.values(), serial_number=uuid.uuid5(uuid.NAMESPACE_OID, seed))
    bom.metadata.component = kit
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, UTC)
    bom.metadata.tools.tools.clear()
    bom.metadata.tools.components.clear()
    bom.register_dependency(kit, [components["privet"]])
    chosen = _edges(wheels, extras)
    for wheel in wheels:
        needs = [components[name] for name in sorted(chosen[wheel.name]) if name in components]
        bom.register_dependency(components[wheel.name], needs)
    text = str(make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)) + "\n"
    if (fault := JsonStrictValidator(SCHEMA).validate_str(text)) is not None:
        raise ValueError(f"the SBOM does not fit its schema: {fault}")
    return text


def _edges(wheels: list[Wheel], extras: list[str]) -> dict[str, set[str]]:
    """Return which names each wheel requires here, with the extras that others ask of it."""
    by_name = {wheel.name: wheel for wheel in wheels}
    asked: dict[str, set[str]] = {name: {""} for name in by_name}
    asked["privet"] |= set(extras)
    edges: dict[str, set[str]] = {name: set() for name in by_name}
    waiting = list(by_name)
    while waiting:
        name = waiting.pop()
        for requirement in map(Requirement, by_name[name].requires):
            if requirement.marker and not any(
                requirement.marker.evaluate({"extra": extra}) for extra in asked[name]
            ):
                continue
            needed = canonicalize_name(requirement.name)
            if needed not in by_name:
                continue
            if needed != name:
                edges[name].add(needed)
            if not requirement.extras <= asked[needed]:
                asked[needed] |= requirement.extras
                waiting.append(needed)
    return edges


def _component(wheel: Wheel, factory: LicenseFactory, folder: str) -> Component:
    digests = [HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)] if wheel.sha256 else []
    address = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION, url=XsUri(folder + wheel.file), hashes=digests
    )
    return Component(
        type=ComponentType.LIBRARY,
        name=wheel.name,
        version=wheel.version,
        bom_ref=f"{wheel.name}=={wheel.version}",
        purl=PackageURL("pypi", name=wheel.name, version=wheel.version),
        hashes=digests,
        licenses=[factory.make_from_string(wheel.licence)] if wheel.licence else [],
        external_references=[address] if wheel.file else [],
    )
