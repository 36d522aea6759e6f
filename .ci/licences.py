"""Write the list of the image's Python packages and their licences, from the lock and what is installed.

Usage: licences.py LOCK OUTPUT. Ends with an error where a package has a licence that is not on the list of
those that may be shipped with ours, or tells none.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# What may be shipped in the image, by its SPDX name, and what packages call it.
KNOWN = {
    "Apache-2.0": (
        "apache-2.0",
        "apache 2",
        "apache 2.0",
        "apache license 2.0",
        "apache software license",
    ),
    "BSD-3-Clause": ("bsd-3-clause", "bsd license", "bsd", "3-clause bsd license"),
    "BSD-2-Clause": ("bsd-2-clause",),
    "MIT": ("mit", "mit license"),
    "MIT-0": ("mit-0",),
    "PSF-2.0": ("psf-2.0", "python software foundation license"),
    "Zlib": ("zlib",),
    "CC0-1.0": ("cc0-1.0",),
    "0BSD": ("0bsd",),
    # Files that we do not change stay under it; certificates of authorities, for example.
    "MPL-2.0": ("mpl-2.0", "mozilla public license 2.0 (mpl 2.0)"),
}
_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")
_JOINT = re.compile(r"\s+(?:AND|OR)\s+", re.IGNORECASE)
HEAD = """\
# Third-party packages

What the image holds beside Debian's Python and ours, made by `make licences` from `requirements-runtime.lock`. Each package's
licence text is in its `*.dist-info` folder in the image. Debian's packages are in the image's own database, their
licences under `/usr/share/doc`. Go programs are built for the sandbox only and are not shipped.

| package | version | licence |
| --- | --- | --- |
"""


class LicenceError(Exception):
    """Name a package whose licence is not known to be fine."""


def find_licence(package: Distribution) -> str:
    """Return a package's licence as an SPDX expression. Raises LicenceError."""
    metadata = package.metadata
    told = metadata.get("License-Expression") or ""
    if not told:
        classifiers = [
            it.rpartition("::")[2].strip()
            for it in metadata.get_all("Classifier") or ()
            if it.startswith("License ::")
        ]
        told = " OR ".join(dict.fromkeys(classifiers))
    if not told or told == "OSI Approved":
        told = (metadata.get("License") or "").strip().partition("\n")[0]
    found = [_name(part, metadata["Name"]) for part in _JOINT.split(told)]
    return (" AND " if " AND " in told else " OR ").join(dict.fromkeys(found))


def _name(told: str, package: str) -> str:
    for name, others in KNOWN.items():
        if told.strip().lower() in (name.lower(), *others):
            return name
    raise LicenceError(f"{package} has the licence '{told}', which is not among {', '.join(KNOWN)}")


def list_packages(lock: str) -> list[str]:
    """Return the rows of the table; packages for other platforms only are not installed here."""
    rows = []
    for line in lock.splitlines():
        match = _PACKAGE.match(line)
        if match is None:
            continue
        try:
            package = distribution(match[1])
        except PackageNotFoundError:
            if ";" in line:
                continue
            raise LicenceError(
                f"{match[1]} is in the lock and not installed: make install"
            ) from None
        rows.append(f"| {match[1]} | {match[2]} | {find_licence(package)} |")
    return rows


def render(lock: str) -> str:
    """Return the whole list. Raises LicenceError."""
    return HEAD + "\n".join(list_packages(lock)) + "\n"


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).write_text(render(Path(sys.argv[1]).read_text()), encoding="utf-8")
    except LicenceError as error:
        sys.exit(f"licences: {error}")
