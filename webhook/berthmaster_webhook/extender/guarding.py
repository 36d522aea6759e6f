"""Who may ask: those with a client certificate of a known authority, or with the token, or both.

kube-scheduler can show a certificate (`tlsConfig`) but no header, so the token may also be the first
part of the path: `urlPrefix: https://host:port/TOKEN/xpushare-scheduler`.
"""

from __future__ import annotations

import hmac
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from berthmaster.cluster.serving import new_server_context
from berthmaster_webhook.settings import SettingsError

# Long enough not to be guessed, and fit for a path.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_LONGEST_FILE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Guard:
    """The token to be shown, empty where certificates alone count."""

    token: str

    def lets_in(self, header: str, in_path: str) -> bool:
        """Return whether a request shows the token, in its header or its path."""
        if not self.token:
            return not in_path
        shown = in_path or header.removeprefix("Bearer ").strip()
        return hmac.compare_digest(shown.encode(), self.token.encode())


def read_guard(token_file: str) -> Guard:
    """Return the guard for a file with a token; raises SettingsError when it cannot be used."""
    if not token_file:
        return Guard("")
    token = _read(token_file, "--extender-token-file").decode("utf-8", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"--extender-token-file {token_file}: expected 16 to 256 letters, digits, '.', '_', '~' "
            "or '-', such as `openssl rand -hex 32` gives"
        )
    return Guard(token)


def make_context(client_ca_file: str) -> ssl.SSLContext:
    """Return a context for the extender's port; with a file only clients of its authorities get in.

    Raises SettingsError when the file cannot be used.
    """
    context = new_server_context()
    if client_ca_file:
        text = _read(client_ca_file, "--extender-client-ca-file").decode("ascii", "replace")
        try:
            context.load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"--extender-client-ca-file {client_ca_file}: expected PEM certificates: {error}"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(path: str, option: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LONGEST_FILE)
    except OSError as error:
        raise SettingsError(f"{option} {path}: {error.strerror}") from error
