"""Downloads published programs, each checked against its SHA-256 before anybody can run it.

Owns the transfer: what was received before a cut is kept and asked for no second time, also by
the next run; a server in trouble is tried again, one that cannot be reached is left alone for the
rest of the run; bytes, seconds and attempts are bounded. Two outcomes need two reactions: a file
that cannot be had is built instead, a file that is not what it should be ends everything.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from berthmaster_sandbox.building import HEARTBEAT_S, Report, format_duration
from berthmaster_sandbox.errors import BinariesError
from berthmaster_sandbox.releases import (
    CHECKSUMS_VARIABLE,
    MIRROR_VARIABLE,
    NO_MIRROR,
    Checksums,
    ReleaseFile,
)

CHUNK_BYTES = 256 * 1024
_MEGABYTE = 1_000_000
# The next request might be answered otherwise.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much; the largest real file has 105 MB."""

    size_bytes: int = 512 * 1024 * 1024
    # For a connection, and for each piece that is waited for.
    silence_s: float = 15.0
    # For one file, all attempts together.
    total_s: float = 900.0
    attempts: int = 4
    # Before the second attempt; doubled before each further one.
    pause_s: float = 1.0


class _NotAvailableError(Exception):
    """The file cannot be had from where it should be; it can be built."""


class _UnreachableError(_NotAvailableError):
    """Nothing answers there."""


class _CutError(Exception):
    """The transfer ended before its time; another attempt may go on where it stopped."""


class _Response(Protocol):
    status: int
    headers: Message

    def read1(self, amount: int, /) -> bytes: ...

    def close(self) -> None: ...


def download_available(
    files: Iterable[ReleaseFile],
    *,
    folder: Path,
    checksums: Checksums,
    report: Report,
    limits: Limits | None = None,
) -> list[str]:
    """Download those files whose checksum is known and return the programs that are in `folder` now.

    What cannot be had is left out and the reason reported. Raises BinariesError if a file is not
    the one that its checksum says.
    """
    limits = limits or Limits()
    unreachable: set[str] = set()
    unknown: list[str] = []
    got: list[str] = []
    for file in files:
        checksum = checksums.find(file.path)
        if checksum is None:
            unknown.append(file.program)
            continue
        if file.base in unreachable:
            continue
        try:
            _download(file, checksum, folder=folder, report=report, limits=limits)
        except _NotAvailableError as error:
            report(f"cannot download {file.program}: {error}")
            if isinstance(error, _UnreachableError):
                unreachable.add(file.base)
        except OSError as error:
            raise BinariesError(f"cannot store {file.program} in {folder}: {error}") from error
        else:
            got.append(file.program)
    if unknown:
        report(
            f"not downloading {', '.join(unknown)}: without a known checksum nothing is run "
            f"({CHECKSUMS_VARIABLE} can name a file of them, see docs/sandbox.md)"
        )
    return got


def _download(
    file: ReleaseFile, checksum: str, *, folder: Path, report: Report, limits: Limits
) -> None:
    part = folder / f".part-{file.program}-{checksum[:16]}"
    for stale in folder.glob(f".part-{file.program}-*"):
        if stale != part:
            stale.unlink()
    started = time.monotonic()
    transfer = _Transfer(
        file, part, report=report, limits=limits, deadline=started + limits.total_s
    )
    transfer.check(checksum)
    if file.member is None:
        program = part
    else:
        program = _extract(part, file.member, limits=limits)
        part.unlink()
    program.chmod(0o755)
    # A rename is atomic: nobody ever sees half a program.
    program.replace(folder / file.program)
    report(f"downloaded {file.program} in {format_duration(time.monotonic() - started)}")


class _Transfer:
    """Brings one file into `part`, over as many connections as it takes."""

    def __init__(
        self, file: ReleaseFile, part: Path, *, report: Report, limits: Limits, deadline: float
    ) -> None:
        self._file = file
        self._part = part
        self._report = report
        self._limits = limits
        self._deadline = deadline
        self._last_report = time.monotonic()
        self._is_met = False

    def check(self, checksum: str) -> None:
        """Fetch the file and compare it. Raises _NotAvailableError, BinariesError."""
        # What an earlier run has left may belong to another file of the same name.
        is_resumed = self._part.exists()
        self._fetch()
        found = _hash(self._part)
        if found != checksum and is_resumed:
            self._part.unlink()
            self._fetch()
            found = _hash(self._part)
        if found != checksum:
            self._part.unlink()
            raise BinariesError(
                f"{self._file.url} is not what it should be and was thrown away: its SHA-256 is "
                f"{found}, expected {checksum}. Ask whoever runs that server; or set "
                f"{MIRROR_VARIABLE}={NO_MIRROR} to build the programs instead"
            )

    def _fetch(self) -> None:
        pause_s = self._limits.pause_s
        for attempt in range(1, self._limits.attempts + 1):
            try:
                self._receive()
            except _CutError as error:
                self._fail_if_late()
                if attempt == self._limits.attempts:
                    raise _NotAvailableError(
                        f"{self._file.url}: {error}, {attempt} times in a row"
                    ) from error
                self._report(f"  {self._file.program}: {error}, trying again in {pause_s:.0f} s")
                time.sleep(min(pause_s, max(0.0, self._deadline - time.monotonic())))
                pause_s *= 2
            else:
                return

    def _receive(self) -> None:
        have = self._part.stat().st_size if self._part.exists() else 0
        response = self._open(have)
        if response is not None:
            with closing(response):
                self._store(response, have=have)

    def _open(self, have: int) -> _Response | None:
        """Return the answer, or None if the server has no more than we have."""
        headers = {"User-Agent": "berthmaster-sandbox", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        # The scheme was checked, or is one of ours.
        request = urllib.request.Request(self._file.url, headers=headers)  # noqa: S310
        try:
            response = urllib.request.urlopen(request, timeout=self._limits.silence_s)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                self._drop_unless_complete(error.headers, have=have)
                return None
            if error.code in _PASSING_STATUSES:
                raise _CutError(f"the server answers {error.code}") from error
            raise _NotAvailableError(f"{self._file.url} answers {error.code}") from error
        except urllib.error.URLError as error:
            if self._is_met:
                raise _CutError(f"the server is gone ({error.reason})") from error
            raise _UnreachableError(
                f"{self._file.base} cannot be reached ({error.reason})"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(f"no answer ({_describe(error)})") from error
        self._is_met = True
        return cast("_Response", response)

    def _drop_unless_complete(self, headers: Message, *, have: int) -> None:
        if headers.get("Content-Range", "") != f"bytes */{have}":
            self._part.unlink()
            raise _CutError("the part received earlier does not fit")

    def _store(self, response: _Response, *, have: int) -> None:
        is_rest = response.status == http.client.PARTIAL_CONTENT and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")
        received = have if is_rest else 0
        length = response.headers.get("Content-Length", "")
        expected = received + int(length) if length.isdigit() else None
        self._fail_if_large(expected or 0)
        with self._part.open("ab" if is_rest else "wb") as target:
            while chunk := self._read(response):
                received += len(chunk)
                self._fail_if_large(received)
                self._fail_if_late()
                target.write(chunk)
                self._show(received, expected)
        if expected is not None and received < expected:
            raise _CutError(f"the transfer was cut after {received} of {expected} bytes")

    def _read(self, response: _Response) -> bytes:
        try:
            # What has come, not a whole chunk: a trickle must not outlast the deadline.
            return response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(f"the transfer was cut ({_describe(error)})") from error

    def _fail_if_large(self, size: int) -> None:
        if size > self._limits.size_bytes:
            self._part.unlink(missing_ok=True)
            raise _NotAvailableError(
                f"{self._file.url} is larger than {self._limits.size_bytes} bytes, "
                "no program of a release is"
            )

    def _fail_if_late(self) -> None:
        if time.monotonic() > self._deadline:
            raise _NotAvailableError(
                f"{self._file.url} took longer than {format_duration(self._limits.total_s)}; "
                "the next run goes on from here"
            )

    def _show(self, received: int, expected: int | None) -> None:
        now = time.monotonic()
        if now - self._last_report > HEARTBEAT_S:
            self._last_report = now
            of = f" of {expected / _MEGABYTE:.0f}" if expected else ""
            self._report(f"  {self._file.program}: {received / _MEGABYTE:.0f}{of} MB so far")


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(archive: Path, member: str, *, limits: Limits) -> Path:
    target = archive.with_name(f"{archive.name}-program")
    try:
        # As a stream: what comes after the member is never unpacked.
        with tarfile.open(archive, "r|gz") as files:
            for item in files:
                if item.name == member and item.isreg() and item.size <= limits.size_bytes:
                    source = files.extractfile(item)
                    with target.open("wb") as output:
                        shutil.copyfileobj(cast("BinaryIO", source), output)
                    return target
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BinariesError(f"{archive} cannot be unpacked: {error}") from error
    raise BinariesError(f"the archive has no program {member}, although its checksum is right")
