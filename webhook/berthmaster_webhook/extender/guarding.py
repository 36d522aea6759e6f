"""Who may ask: those with a client certificate of a known authority, or with the token, or both.

kube-scheduler can show a certificate (`tlsConfig`) but no header, so the token may also be the first
part of the path: `urlPrefix: https://host:port/TOKEN/xpushare-scheduler`.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from berthmaster_webhook.callers import read_file
from berthmaster_webhook.settings import SettingsError

# Long enough not to be guessed, and fit for a path.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")


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
    token = read_file(token_file, "--extender-token-file").decode("utf-8", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"--extender-token-file {token_file}: expected 16 to 256 letters, digits, '.', '_', '~' "
            "or '-', such as `openssl rand -hex 32` gives"
        )
    return Guard(token)
