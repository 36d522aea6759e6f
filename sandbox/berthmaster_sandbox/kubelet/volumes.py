"""The volumes of a pod as plain folders, kept up to date.

ConfigMaps, Secrets, the downward API and service-account tokens are written as files; an
`emptyDir` is an empty folder. Each other kind is refused with a clear message. Files can be read
by the user alone, and one is replaced as a whole, so that a reader never sees half of it.
Tokens are bound to the pod and renewed when four fifths of their life are over.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from berthmaster.cluster.client import ApiError, Client
from berthmaster_sandbox.kubelet.environment import (
    SERVICE_ACCOUNT_MOUNT,
    ConfigError,
    decode_secret,
    field_value,
)

Files = dict[str, bytes]

TOKEN_LIFETIME_S = 3607
_RENEW_AFTER = 0.8
_WITH_FILES = ("configMap", "secret", "downwardAPI", "projected")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    renew_at: float


class PodVolumes:
    """The folders of one pod's volumes below `folder`."""

    def __init__(
        self, folder: Path, *, client: Client, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._client = client
        self._clock = clock
        self._tokens: dict[tuple[str, str, int], _Token] = {}

    def folder_of(self, volume: str) -> Path:
        """Return where a volume's files are, whether it has been written or not."""
        return self._folder / volume

    async def write(self, pod: Mapping[str, Any]) -> None:
        """Bring all folders up to date.

        Raises ConfigError when an object is absent or a volume's kind is not supported, and what
        the client raises when the API server refuses or does not answer.
        """
        for volume in pod["spec"].get("volumes") or ():
            folder = self.folder_of(volume["name"])
            files = await self._volume_files(pod, volume)
            await asyncio.to_thread(_write_folder, folder, files)

    async def _volume_files(
        self, pod: Mapping[str, Any], volume: Mapping[str, Any]
    ) -> Files | None:
        if "emptyDir" in volume:
            return None
        for kind in _WITH_FILES:
            if kind in volume:
                return await self._source_files(pod, kind, volume[kind])
        kinds = ", ".join(sorted(set(volume) - {"name"}))
        raise ConfigError(f"volume {volume['name']!r}: {kinds} is not supported by the sandbox")

    async def _source_files(
        self, pod: Mapping[str, Any], kind: str, source: Mapping[str, Any]
    ) -> Files:
        namespace = pod["metadata"]["namespace"]
        if kind == "projected":
            files: Files = {}
            for part in source.get("sources") or ():
                for name, value in part.items():
                    files |= await self._source_files(pod, name, value)
            return files
        if kind == "downwardAPI":
            return _downward_files(pod, source)
        if kind == "serviceAccountToken":
            return {source["path"]: (await self._token(pod, source)).encode()}
        if kind in ("configMap", "secret"):
            name = source.get("secretName") or source.get("name") or ""
            found = await fetch(self._client, f"{kind.lower()}s", namespace, name)
            return _object_files(kind.lower(), name, found, source)
        raise ConfigError(f"projected source {kind} is not supported by the sandbox")

    async def _token(self, pod: Mapping[str, Any], source: Mapping[str, Any]) -> str:
        audience = source.get("audience") or ""
        lifetime_s = int(source.get("expirationSeconds") or TOKEN_LIFETIME_S)
        key = (source["path"], audience, lifetime_s)
        known = self._tokens.get(key)
        if known is not None and self._clock() < known.renew_at:
            return known.text
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": lifetime_s,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        answer = await self._client.create(
            f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token", request
        )
        token = _Token(answer["status"]["token"], self._clock() + lifetime_s * _RENEW_AFTER)
        self._tokens[key] = token
        return token.text


async def fetch(
    client: Client, resource: str, namespace: str, name: str
) -> Mapping[str, Any] | None:
    """Return a ConfigMap or Secret, or None if there is none; other refusals are raised."""
    try:
        return await client.get(f"/api/v1/namespaces/{namespace}/{resource}/{name}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def find_account_volume(container: Mapping[str, Any]) -> str | None:
    """Return the volume that holds the container's service-account token, if it mounts one."""
    for mount in container.get("volumeMounts") or ():
        if mount["mountPath"].rstrip("/") == SERVICE_ACCOUNT_MOUNT:
            return str(mount["name"])
    return None


def build_kubeconfig(*, server_url: str, ca_path: Path, token_path: Path, namespace: str) -> str:
    """Return a kubeconfig (JSON, which is YAML) that reads its token from a file at each use."""
    name = "sandbox"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {
                "name": name,
                "cluster": {"server": server_url, "certificate-authority": str(ca_path)},
            }
        ],
        "users": [{"name": name, "user": {"tokenFile": str(token_path)}}],
        "contexts": [
            {"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}
        ],
    }
    return json.dumps(config, indent=2)


def write_private_file(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by the user alone; an equal one is left in place."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    fresh.replace(path)


def _write_folder(folder: Path, files: Files | None) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if files is None:
        return
    for name, content in files.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"path {name!r} leaves its volume")
        write_private_file(target, content)
    wanted = {folder / name for name in files}
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink(missing_ok=True)


def _object_files(
    kind: str, name: str, found: Mapping[str, Any] | None, source: Mapping[str, Any]
) -> Files:
    if found is None:
        if source.get("optional"):
            return {}
        raise ConfigError(f"{kind} {name!r} not found")
    if kind == "secret":
        files = decode_secret(found.get("data") or {})
    else:
        files = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        files |= decode_secret(found.get("binaryData") or {})
    items = source.get("items")
    if not items:
        return files
    missing = [item["key"] for item in items if item["key"] not in files]
    if missing and not source.get("optional"):
        raise ConfigError(f"{kind} {name!r} has no key {missing[0]!r}")
    return {item["path"]: files[item["key"]] for item in items if item["key"] in files}


def _downward_files(pod: Mapping[str, Any], source: Mapping[str, Any]) -> Files:
    files: Files = {}
    for item in source.get("items") or ():
        if "fieldRef" not in item:
            raise ConfigError("resourceFieldRef is not supported by the sandbox")
        files[item["path"]] = field_value(pod, item["fieldRef"].get("fieldPath", "")).encode()
    return files
