"""Programs are downloaded only from where it is allowed, only whole, and only if they are genuine.

Nothing here leaves the machine: a mirror with bad habits serves on loopback.
"""

from __future__ import annotations

import hashlib
import io
import platform
import re
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from berthmaster_sandbox import downloading
from berthmaster_sandbox.binaries import ALL_NAMES, ensure_binaries, fill_cache
from berthmaster_sandbox.building import ETCD_VERSION, KUBERNETES_VERSION, KWOK_VERSION, is_built
from berthmaster_sandbox.downloading import Limits, download_available
from berthmaster_sandbox.errors import BinariesError
from berthmaster_sandbox.pki import Authority
from berthmaster_sandbox.releases import (
    CHECKSUMS_VARIABLE,
    MIRROR_VARIABLE,
    Checksums,
    ReleaseFile,
    list_release_files,
    parse_checksums,
)

LIMITS = Limits(silence_s=5, total_s=60, pause_s=0.01)
KUBECTL = f"kubernetes/v{KUBERNETES_VERSION}/bin/linux/amd64/kubectl"
# Larger than what is read and sent at once, so that a cut falls into the middle.
CONTENT = b"#!/bin/sh\necho downloaded\n" + bytes(range(256)) * 8192


@dataclass
class Mirror:
    """A server of files; `answer`, when set, replaces its good manners for one request."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    answers: list[Callable[[BaseHTTPRequestHandler, bytes], None]] = field(default_factory=list)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((path, wanted))
        content = self.files.get(path)
        if content is None:
            handler.send_error(404)
        elif self.answers:
            self.answers.pop(0)(handler, content)
        else:
            send(handler, content)


def send(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Answer as good servers do, with the rest of the file if that is asked for."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    start = int(wanted[1]) if wanted else 0
    if start and start >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(content)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - start))
    handler.end_headers()
    handler.wfile.write(content[start:])


def cut(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Promise everything and hang up in the middle."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def ignore_range(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send all of it although the rest was asked for."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def fail(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    handler.send_error(503)


def trickle(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Never silent for long, and never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        handler.wfile.write(b"#")
        time.sleep(0.02)


def promise_too_much(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(10**12))
    handler.end_headers()


def send_without_end(handler: BaseHTTPRequestHandler, _content: bytes) -> None:
    """Say no length and go on for as long as somebody listens."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(10_000):
        handler.wfile.write(bytes(64 * 1024))


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    yield from run_mirror()


def run_mirror(context: ssl.SSLContext | None = None) -> Iterator[Mirror]:
    state = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                state.serve(self)

        def log_message(self, *_args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    state.address = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join(timeout=20)
    server.server_close()


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def find_kubectl(mirror: Mirror) -> ReleaseFile:
    files = list_release_files("amd64", {MIRROR_VARIABLE: mirror.address})
    return next(file for file in files if file.program == "kubectl")


def write_sums(tmp_path: Path, files: dict[str, bytes]) -> Path:
    path = tmp_path / "SHA256SUMS"
    path.write_text("".join(f"{sum_of(content)}  {name}\n" for name, content in files.items()))
    return path


class Downloader:
    """Downloads kubectl from the mirror with the checksum of CONTENT."""

    def __init__(self, mirror: Mirror, tmp_path: Path) -> None:
        mirror.files[KUBECTL] = CONTENT
        sums = write_sums(tmp_path, mirror.files)
        self.folder = tmp_path / "cache"
        self.folder.mkdir()
        self.lines: list[str] = []
        self._mirror = mirror
        self._checksums = Checksums({CHECKSUMS_VARIABLE: str(sums)})

    def run(self, limits: Limits = LIMITS) -> list[str]:
        return download_available(
            [find_kubectl(self._mirror)],
            folder=self.folder,
            checksums=self._checksums,
            report=self.lines.append,
            limits=limits,
        )

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def downloader(mirror: Mirror, tmp_path: Path) -> Downloader:
    return Downloader(mirror, tmp_path)


def test_program_arrives_whole_and_can_be_run(downloader: Downloader) -> None:
    assert downloader.run() == ["kubectl"]

    assert (downloader.folder / "kubectl").read_bytes() == CONTENT
    assert is_built(downloader.folder, "kubectl")
    assert [path.name for path in downloader.folder.iterdir()] == ["kubectl"]


def test_cut_transfer_goes_on_where_it_stopped(mirror: Mirror, downloader: Downloader) -> None:
    mirror.answers = [cut]

    assert downloader.run() == ["kubectl"]

    assert mirror.requests == [(KUBECTL, None), (KUBECTL, f"bytes={len(CONTENT) // 2}-")]
    assert (downloader.folder / "kubectl").read_bytes() == CONTENT
    assert "trying again" in downloader.text


def test_next_run_goes_on_where_the_last_one_stopped(
    mirror: Mirror, downloader: Downloader
) -> None:
    mirror.answers = [cut]

    assert downloader.run(Limits(silence_s=5, total_s=60, pause_s=0.01, attempts=1)) == []
    assert not (downloader.folder / "kubectl").exists()
    assert downloader.run() == ["kubectl"]

    assert mirror.requests[-1] == (KUBECTL, f"bytes={len(CONTENT) // 2}-")


def test_server_that_ignores_ranges_starts_over(mirror: Mirror, downloader: Downloader) -> None:
    mirror.answers = [cut, ignore_range]

    assert downloader.run() == ["kubectl"]

    assert (downloader.folder / "kubectl").read_bytes() == CONTENT


def test_whole_part_of_a_killed_run_is_not_fetched_again(
    mirror: Mirror, downloader: Downloader
) -> None:
    part = downloader.folder / f".part-kubectl-{sum_of(CONTENT)[:16]}"
    part.write_bytes(CONTENT)

    assert downloader.run() == ["kubectl"]

    assert mirror.requests == [(KUBECTL, f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize("left", [b"rubbish", b"rubbish" * len(CONTENT)])
def test_rubbish_of_an_earlier_run_does_not_spoil_the_file(
    left: bytes, downloader: Downloader
) -> None:
    part = downloader.folder / f".part-kubectl-{sum_of(CONTENT)[:16]}"
    part.write_bytes(left)

    assert downloader.run() == ["kubectl"]

    assert (downloader.folder / "kubectl").read_bytes() == CONTENT


def test_server_in_trouble_is_asked_again(mirror: Mirror, downloader: Downloader) -> None:
    mirror.answers = [fail, fail]

    assert downloader.run() == ["kubectl"]

    assert len(mirror.requests) == 3
    assert "the server answers 503, trying again" in downloader.text


def test_attempts_end(mirror: Mirror, downloader: Downloader) -> None:
    mirror.answers = [fail] * 9

    assert downloader.run() == []

    assert len(mirror.requests) == LIMITS.attempts
    assert "cannot download kubectl" in downloader.text
    assert "4 times in a row" in downloader.text


def test_file_with_another_checksum_is_refused(mirror: Mirror, downloader: Downloader) -> None:
    forged = CONTENT.replace(b"downloaded", b"outwitted!")
    mirror.files[KUBECTL] = forged

    with pytest.raises(BinariesError) as caught:
        downloader.run()

    message = str(caught.value)
    assert f"{mirror.address}/{KUBECTL} is not what it should be" in message
    assert sum_of(forged) in message
    assert sum_of(CONTENT) in message
    assert f"{MIRROR_VARIABLE}=off" in message
    # Neither run nor resumed.
    assert list(downloader.folder.iterdir()) == []


def test_missing_file_is_asked_for_once(mirror: Mirror, downloader: Downloader) -> None:
    mirror.files.clear()

    assert downloader.run() == []

    assert len(mirror.requests) == 1
    assert f"{mirror.address}/{KUBECTL} answers 404" in downloader.text


@pytest.mark.parametrize("answer", [promise_too_much, send_without_end])
def test_file_without_bounds_is_given_up(
    answer: Callable[[BaseHTTPRequestHandler, bytes], None], mirror: Mirror, downloader: Downloader
) -> None:
    mirror.answers = [answer]

    assert downloader.run(Limits(silence_s=5, size_bytes=8_000_000)) == []

    assert "larger than 8000000 bytes" in downloader.text
    assert list(downloader.folder.iterdir()) == []


def test_trickle_does_not_outlast_the_deadline(mirror: Mirror, downloader: Downloader) -> None:
    mirror.answers = [trickle]
    started = time.monotonic()

    assert downloader.run(Limits(silence_s=30, total_s=1.0)) == []

    assert time.monotonic() - started < 20
    assert "took longer than 1 s" in downloader.text


def test_unreachable_server_is_tried_once_for_all_files(tmp_path: Path) -> None:
    with socket.socket() as closed:
        # Bound and not listening: connections are refused.
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = {MIRROR_VARIABLE: address}
        lines: list[str] = []

        got = download_available(
            list_release_files("amd64", environment),
            folder=tmp_path,
            checksums=Checksums(environment),
            report=lines.append,
            limits=LIMITS,
        )

    assert got == []
    assert len([line for line in lines if f"{address} cannot be reached" in line]) == 1


def test_mirror_of_a_private_authority_is_trusted_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.issue_server("mirror", "mirror", addresses=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate_path, pair.key_path)
    servers = run_mirror(context)
    mirror = next(servers)
    downloader = Downloader(mirror, tmp_path)

    assert downloader.run() == []
    assert "CERTIFICATE_VERIFY_FAILED" in downloader.text

    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate_path))
    assert downloader.run() == ["kubectl"]
    next(servers, None)


def pack(member: str, content: bytes) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name in (f"{member}ctl", member):
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return target.getvalue()


def make_release(architecture: str) -> dict[str, bytes]:
    """Return a small release by path, in the layout that docs/sandbox.md asks of a mirror."""
    kubernetes = f"kubernetes/v{KUBERNETES_VERSION}/bin/linux/{architecture}"
    etcd = f"etcd-v{ETCD_VERSION}-linux-{architecture}"
    programs = ("kube-apiserver", "kube-scheduler", "kube-controller-manager", "kubectl")
    files = {f"{kubernetes}/{name}": f"#!/bin/sh\necho {name}\n".encode() for name in programs}
    files[f"etcd/v{ETCD_VERSION}/{etcd}.tar.gz"] = pack(f"{etcd}/etcd", b"#!/bin/sh\necho etcd\n")
    files[f"kwok/v{KWOK_VERSION}/kwok-linux-{architecture}"] = b"#!/bin/sh\necho kwok\n"
    return files


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_whole_control_plane_comes_from_a_mirror(
    machine: str,
    architecture: str,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    mirror.files = make_release(architecture)
    environment = {
        "HOME": str(tmp_path),
        MIRROR_VARIABLE: f"{mirror.address}/",
        CHECKSUMS_VARIABLE: str(write_sums(tmp_path, mirror.files)),
    }

    binaries = ensure_binaries(environment=environment, report=lambda _line: None)

    for name in ALL_NAMES:
        done = subprocess.run([binaries.folder / name], capture_output=True, text=True, check=True)
        assert done.stdout == f"{name}\n"
    assert len(mirror.requests) == len(ALL_NAMES)
    assert sorted(path.name for path in binaries.folder.iterdir()) == [".lock", *sorted(ALL_NAMES)]
    # From now on they come from the cache.
    ensure_binaries(environment=environment, report=lambda _line: None)
    assert len(mirror.requests) == len(ALL_NAMES)


def test_archive_without_the_program_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files = make_release("amd64")
    path = next(name for name in mirror.files if name.startswith("etcd/"))
    mirror.files[path] = pack("elsewhere/etcd", b"#!/bin/sh\n")
    environment = {
        MIRROR_VARIABLE: mirror.address,
        CHECKSUMS_VARIABLE: str(write_sums(tmp_path, mirror.files)),
    }
    files = [file for file in list_release_files("amd64", environment) if file.program == "etcd"]

    with pytest.raises(BinariesError, match="has no program etcd-v"):
        download_available(
            files, folder=tmp_path, checksums=Checksums(environment), report=lambda _line: None
        )


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was asked to be built; nothing is."""
    asked: list[list[str]] = []

    def build(names: list[str], **_options: object) -> None:
        asked.append(list(names))

    monkeypatch.setattr("berthmaster_sandbox.binaries.build_missing", build)
    return asked


def test_what_cannot_be_checked_is_built_and_never_asked_for(
    mirror: Mirror, tmp_path: Path, building: list[list[str]]
) -> None:
    """Also when the mirror has it: only what is pinned here or named by the user is fetched."""
    mirror.files = make_release("amd64")
    lines: list[str] = []

    fill_cache(
        ["etcd"], tmp_path, environment={MIRROR_VARIABLE: mirror.address}, report=lines.append
    )

    assert mirror.requests == []
    assert building == [["etcd"]]
    assert "not downloading etcd: without a known checksum nothing is run" in lines[0]


def test_unreachable_mirror_leads_to_a_build(tmp_path: Path, building: list[list[str]]) -> None:
    lines: list[str] = []
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"

        fill_cache(
            ["kubectl", "kwok"],
            tmp_path,
            environment={MIRROR_VARIABLE: address},
            report=lines.append,
        )

    assert f"cannot download kubectl: {address} cannot be reached" in lines[0]
    assert building == [["kubectl", "kwok"]]


def test_no_download_is_tried_when_it_is_switched_off(
    tmp_path: Path, building: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", opened.append)

    fill_cache(
        ["kubectl"], tmp_path, environment={MIRROR_VARIABLE: "off"}, report=lambda _line: None
    )

    assert opened == []
    assert building == [["kubectl"]]


@pytest.mark.parametrize(
    "address",
    ["mirror.example.com", "file:///srv/mirror", "ftp://mirror", "https://", "http://h:port"],
)
def test_mirror_that_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BinariesError, match=rf"{MIRROR_VARIABLE} is no address .*expected http://"):
        list_release_files("amd64", {MIRROR_VARIABLE: address})


def test_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(BinariesError, match="plain address") as caught:
        list_release_files("amd64", {MIRROR_VARIABLE: "https://user:hush@mirror.example.com"})

    assert "hush" not in str(caught.value)


def test_official_addresses_are_used_without_a_mirror() -> None:
    urls = {file.program: file.url for file in list_release_files("arm64", {})}

    assert (
        urls["kubectl"]
        == f"https://dl.k8s.io/release/v{KUBERNETES_VERSION}/bin/linux/arm64/kubectl"
    )
    assert all(url.startswith("https://") for url in urls.values())


def test_pinned_checksums_are_of_the_pinned_versions() -> None:
    """A version bumped without its checksums would be downloaded under an old sum, and refused."""
    pinned = parse_checksums(
        (Path(downloading.__file__).parent / "recipe" / "SHA256SUMS").read_text(), origin="pins"
    )
    known = {file.path for name in ("amd64", "arm64") for file in list_release_files(name, {})}

    assert pinned
    assert set(pinned) <= known
    assert Checksums({}).find(KUBECTL) == pinned[KUBECTL]


def test_publishers_own_file_of_checksums_is_understood(tmp_path: Path) -> None:
    archive = f"etcd-v{ETCD_VERSION}-linux-amd64.tar.gz"
    path = tmp_path / "sums"
    path.write_text(f"# from the release page\n{'A' * 64} *./{archive}\n\n{'b' * 64}  other.zip\n")

    checksums = Checksums({CHECKSUMS_VARIABLE: str(path)})

    assert checksums.find(f"etcd/v{ETCD_VERSION}/{archive}") == "a" * 64
    assert checksums.find(f"etcd/v{ETCD_VERSION}/not-{archive}") is None


def test_users_word_comes_before_the_pin(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    path.write_text(f"{'a' * 64}  {KUBECTL}\n")

    assert Checksums({CHECKSUMS_VARIABLE: str(path)}).find(KUBECTL) == "a" * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc  kubectl\n", "line 1: expected a SHA-256 in hex"),
        (f"{'a' * 128}  kubectl\n", "line 1: expected a SHA-256 in hex"),
        (f"{'a' * 64}  kubectl\n{'b' * 64}  kubectl\n", "line 2: another sum for kubectl"),
    ],
)
def test_malformed_checksums_are_refused_by_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sums"
    path.write_text(text)

    with pytest.raises(BinariesError, match=message):
        Checksums({CHECKSUMS_VARIABLE: str(path)})


def test_contradicting_checksums_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    path.write_text(f"{'a' * 64}  kubectl\n{'b' * 64}  amd64/kubectl\n")

    with pytest.raises(BinariesError, match="2 different sums"):
        Checksums({CHECKSUMS_VARIABLE: str(path)}).find(KUBECTL)


def test_absent_file_of_checksums_is_named(tmp_path: Path) -> None:
    with pytest.raises(BinariesError, match=rf"{CHECKSUMS_VARIABLE} names .*absent"):
        Checksums({CHECKSUMS_VARIABLE: str(tmp_path / "absent")})
