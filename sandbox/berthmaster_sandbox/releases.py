"""The official releases: which file holds which program, where it is, and its checksum.

Owns the layout that a mirror has to serve, the pinned checksums (`recipe/SHA256SUMS`), the user's
own file of checksums, which comes before them, and the settings for both. Opens no connection. A
file without a checksum has no place here: nobody could tell what was downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from berthmaster_sandbox.building import ETCD_VERSION, KUBERNETES_VERSION, KWOK_VERSION
from berthmaster_sandbox.errors import BinariesError

MIRROR_VARIABLE = "BERTHMASTER_SANDBOX_MIRROR"
CHECKSUMS_VARIABLE = "BERTHMASTER_SANDBOX_CHECKSUMS"
NO_MIRROR = "off"

CHECKSUMS_LIMIT = 1024 * 1024
_CHECKSUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(\S.*)")

_OFFICIAL = {
    "kubernetes": "https://dl.k8s.io/release",
    "etcd": "https://github.com/etcd-io/etcd/releases/download",
    "kwok": "https://github.com/kubernetes-sigs/kwok/releases/download",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """A published file: the program in it, and its path below a mirror's address.

    `member` is the program's path inside a .tar.gz, or None for a file that is the program.
    `base` is where the path begins; files of one base come from one server.
    """

    program: str
    path: str
    base: str
    url: str
    member: str | None = None


def list_release_files(architecture: str, environment: Mapping[str, str]) -> list[ReleaseFile]:
    """Return the files for Linux on `architecture`; none if the user wants no download.

    Raises BinariesError for a mirror that is no address.
    """
    mirror = environment.get(MIRROR_VARIABLE, "").strip().rstrip("/")
    if mirror == NO_MIRROR:
        return []
    if mirror:
        _check_mirror(mirror)
    files = []
    for program, path, member in _describe_files(architecture):
        project, _, rest = path.partition("/")
        base = mirror or _OFFICIAL[project]
        url = f"{base}/{path}" if mirror else f"{base}/{rest}"
        files.append(ReleaseFile(program=program, path=path, base=base, url=url, member=member))
    return files


def _describe_files(architecture: str) -> list[tuple[str, str, str | None]]:
    kubernetes = f"kubernetes/v{KUBERNETES_VERSION}/bin/linux/{architecture}"
    etcd = f"etcd-v{ETCD_VERSION}-linux-{architecture}"
    programs = ("kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")
    return [
        *((program, f"{kubernetes}/{program}", None) for program in programs),
        ("etcd", f"etcd/v{ETCD_VERSION}/{etcd}.tar.gz", f"{etcd}/etcd"),
        ("kwok", f"kwok/v{KWOK_VERSION}/kwok-linux-{architecture}", None),
    ]


def _check_mirror(mirror: str) -> None:
    try:
        parts = urlsplit(mirror)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        # Reading the port is what checks it.
        is_address = is_address and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise BinariesError(
            f"{MIRROR_VARIABLE} is no address of a mirror, expected http://HOST/PATH, "
            f"https://HOST/PATH, or {NO_MIRROR} to download nothing"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise BinariesError(
            f"{MIRROR_VARIABLE} must be a plain address: no user name, password, query or fragment"
        )


class Checksums:
    """What is known about files, by their path: the user's own word, then what is pinned."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Read both files. Raises BinariesError naming the line that cannot be understood."""
        pinned = resources.files("berthmaster_sandbox") / "recipe" / "SHA256SUMS"
        self._pinned = parse_checksums(pinned.read_text(encoding="utf-8"), origin="SHA256SUMS")
        named = environment.get(CHECKSUMS_VARIABLE, "").strip()
        self._named = _read_checksums(Path(named).expanduser()) if named else {}

    def find(self, path: str) -> str | None:
        """Return the SHA-256 of a release file in lower-case hex, or None if nobody knows it.

        A name in the user's file may leave out leading folders, as publishers' own files do.
        Raises BinariesError if two of them contradict each other.
        """
        found = {sum_ for name, sum_ in self._named.items() if f"/{path}".endswith(f"/{name}")}
        if len(found) > 1:
            raise BinariesError(
                f"the file named by {CHECKSUMS_VARIABLE} has {len(found)} different sums for {path}"
            )
        return found.pop() if found else self._pinned.get(path)


def _read_checksums(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            content = file.read(CHECKSUMS_LIMIT + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BinariesError(
            f"{CHECKSUMS_VARIABLE} names {path}, which cannot be read: {error}"
        ) from error
    if len(content) > CHECKSUMS_LIMIT:
        raise BinariesError(f"{path} is larger than a file of checksums can be (1 MiB)")
    return parse_checksums(text, origin=str(path))


def parse_checksums(text: str, *, origin: str) -> dict[str, str]:
    """Return SHA-256 sums by name from the output of sha256sum; `#` begins a remark.

    Raises BinariesError naming the first line that is neither, or that contradicts another.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _CHECKSUM_LINE.fullmatch(line.rstrip())
        if match is None:
            raise BinariesError(
                f"{origin}, line {number}: expected a SHA-256 in hex, two blanks and a file's path"
            )
        value, name = match[1].lower(), match[2]
        if sums.setdefault(name, value) != value:
            raise BinariesError(f"{origin}, line {number}: another sum for {name} than before")
    return sums
