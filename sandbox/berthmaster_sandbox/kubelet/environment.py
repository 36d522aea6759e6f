"""What a container's process is started with: its variables, arguments and paths.

A process in the sandbox has no file system, no network and no user of its own. What a container
would find there comes by environment; these names are the whole agreement with a pod's author:

* `BERTHMASTER_BIND_ADDRESS`: the loopback address to listen on; it stands for the pod's IP.
* `KUBECONFIG`: a file that reaches the API server as the pod's service account, which names the
  token by file so that a renewed token is picked up. Absent when the pod mounts no token.
* `BERTHMASTER_SERVICEACCOUNT_DIR`: the folder with `token`, `ca.crt` and `namespace`.
* `BERTHMASTER_MOUNT_<VOLUME>`: the folder of each mounted volume, upper case, `-` as `_`.
* `TMPDIR`, `HOME`: a folder of the pod, empty at its start.
* `PATH`, `HOSTNAME`, `LANG`: as in a container; the project's programs come first in `PATH`.

Beyond that, mount paths that stand in a command, an argument or a variable are replaced by the
folder that is mounted there, so that `--config=/etc/berthmaster/policy.yaml` means what it says.

Nothing here reads a file or asks the API server: objects come in through `Sources`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_REFERENCE = re.compile(r"\$\$|\$\(([^()$]+)\)")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")
# A mount path counts only as a whole: what stands before it, and what may follow.
_PATH_BEFORE = r"(?:(?<=[\s=:,;\"'(])|^)"
_PATH_AFTER = r"(?=[/\s:,;\"')]|$)"


class ConfigError(Exception):
    """A container cannot be configured as its pod asks; the message is for the pod's author."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The objects that variables may refer to, by name; an absent one is missing from its map."""

    config_maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A process to start: the full argument vector and the full environment.

    `mounts` is kept for commands that run beside it, such as probes.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: Mapping[str, str] = field(default_factory=dict)

    def beside(self, command: Sequence[str]) -> Launch:
        """Return how to start another command in the same surroundings."""
        argv = tuple(translate_paths(word, self.mounts) for word in command)
        return Launch(argv=argv, env=self.env, mounts=self.mounts)


def referenced_objects(container: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the ConfigMaps and of the Secrets that the variables refer to."""
    config_maps: set[str] = set()
    secrets: set[str] = set()
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        if "configMapKeyRef" in source:
            config_maps.add(source["configMapKeyRef"].get("name", ""))
        if "secretKeyRef" in source:
            secrets.add(source["secretKeyRef"].get("name", ""))
    for bulk in container.get("envFrom") or ():
        if "configMapRef" in bulk:
            config_maps.add(bulk["configMapRef"].get("name", ""))
        if "secretRef" in bulk:
            secrets.add(bulk["secretRef"].get("name", ""))
    return frozenset(config_maps), frozenset(secrets)


def build_launch(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    *,
    entrypoint: Sequence[str],
    sources: Sources,
    base_env: Mapping[str, str],
    mounts: Mapping[str, str],
) -> Launch:
    """Return what to execute for a container.

    `entrypoint` is the image's own command, used when the container has none; `base_env` are the
    sandbox's variables, which win over the image's and lose against the container's; `mounts`
    maps each mount path to the folder that stands for it.

    Raises ConfigError when a variable cannot be resolved or there is nothing to execute.
    """
    env = without_proxies(resolve_variables(pod, container, sources=sources, base_env=base_env))
    command = container.get("command") or list(entrypoint)
    words = [expand(word, env) for word in (*command, *(container.get("args") or ()))]
    if not words:
        raise ConfigError("neither the container nor its image names a command")
    places = {place: folder for place, folder in mounts.items() if place != "/"}
    return Launch(
        argv=tuple(translate_paths(word, places) for word in words),
        env={
            name: value if name in base_env else translate_paths(value, places)
            for name, value in env.items()
        },
        mounts=places,
    )


def resolve_variables(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    *,
    sources: Sources,
    base_env: Mapping[str, str],
) -> dict[str, str]:
    """Return all variables of a container, in the order of Kubernetes: `envFrom`, then `env`.

    A later one wins, and its `$(NAME)` refer to those before it. Raises ConfigError.
    """
    env = dict(base_env)
    for bulk in container.get("envFrom") or ():
        env.update(_bulk_variables(bulk, sources))
    for variable in container.get("env") or ():
        value = _variable_value(pod, variable, env, sources)
        if value is not None:
            env[variable["name"]] = value
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable's value and `$$` by `$`; unknown names stay as written."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return env.get(name, match.group(0))

    return _REFERENCE.sub(replace, text)


def translate_paths(text: str, mounts: Mapping[str, str]) -> str:
    """Replace mount paths that stand in `text` as whole paths by the folders behind them.

    The longest mount path wins. `--file=/etc/app/x` with `/etc/app` mounted from `/pod/v` becomes
    `--file=/pod/v/x`; `/etc/apple` is left alone.
    """
    places = sorted((place.rstrip("/") for place in mounts), key=len, reverse=True)
    folders = {place.rstrip("/"): folder for place, folder in mounts.items()}
    if not places:
        return text
    alternatives = "|".join(re.escape(place) for place in places)
    pattern = f"{_PATH_BEFORE}({alternatives}){_PATH_AFTER}"
    return re.sub(pattern, lambda match: folders[match.group(1)], text)


def mount_variable(volume: str) -> str:
    """Return the variable that names a volume's folder: `my-data` is `BERTHMASTER_MOUNT_MY_DATA`."""
    return "BERTHMASTER_MOUNT_" + re.sub(r"[^A-Za-z0-9]", "_", volume).upper()


def field_value(pod: Mapping[str, Any], path: str) -> str:
    """Return a pod's field as the downward API does; ConfigError for one that it does not offer."""
    metadata = pod.get("metadata") or {}
    subscript = _SUBSCRIPT.match(path)
    if subscript is not None:
        return str((metadata.get(subscript.group(1)) or {}).get(subscript.group(2), ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = metadata.get(path.removeprefix("metadata.")) or {}
        return "\n".join(f'{key}="{_escape(value)}"' for key, value in sorted(pairs.items()))
    status = pod.get("status") or {}
    spec = pod.get("spec") or {}
    values = {
        "metadata.name": metadata.get("name"),
        "metadata.namespace": metadata.get("namespace"),
        "metadata.uid": metadata.get("uid"),
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "status.podIP": status.get("podIP"),
        "status.podIPs": status.get("podIP"),
        "status.hostIP": status.get("hostIP"),
        "status.hostIPs": status.get("hostIP"),
    }
    if path not in values:
        raise ConfigError(f"fieldRef {path!r} is not supported by the sandbox")
    return str(values[path] or "")


def decode_secret(data: Mapping[str, str]) -> dict[str, bytes]:
    """Return a Secret's data in the clear; ConfigError when it is not base64."""
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
    except binascii.Error as error:
        raise ConfigError("secret data is not base64") from error


def without_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without proxy settings: the sandbox talks on loopback only."""
    return {name: value for name, value in env.items() if not name.upper().endswith("_PROXY")}


def _variable_value(
    pod: Mapping[str, Any], variable: Mapping[str, Any], env: Mapping[str, str], sources: Sources
) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value") or "", env)
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"].get("fieldPath", ""))
    if "configMapKeyRef" in source:
        return _key_value("configmap", source["configMapKeyRef"], sources)
    if "secretKeyRef" in source:
        return _key_value("secret", source["secretKeyRef"], sources)
    kinds = ", ".join(sorted(source))
    raise ConfigError(f"env {variable['name']}: {kinds} is not supported by the sandbox")


def _key_value(kind: str, reference: Mapping[str, Any], sources: Sources) -> str | None:
    name, key = reference.get("name", ""), reference.get("key", "")
    values = _values(kind, name, sources)
    if values is not None and key in values:
        return values[key]
    if reference.get("optional"):
        return None
    if values is None:
        raise ConfigError(f"{kind} {name!r} not found")
    raise ConfigError(f"{kind} {name!r} has no key {key!r}")


def _bulk_variables(bulk: Mapping[str, Any], sources: Sources) -> Iterable[tuple[str, str]]:
    kind = "configmap" if "configMapRef" in bulk else "secret"
    reference = bulk.get("configMapRef") or bulk.get("secretRef") or {}
    values = _values(kind, reference.get("name", ""), sources)
    if values is None:
        if reference.get("optional"):
            return ()
        raise ConfigError(f"{kind} {reference.get('name', '')!r} not found")
    prefix = bulk.get("prefix") or ""
    return [(prefix + key, value) for key, value in values.items()]


def _values(kind: str, name: str, sources: Sources) -> dict[str, str] | None:
    if kind == "configmap":
        config_map = sources.config_maps.get(name)
        return None if config_map is None else dict(config_map.get("data") or {})
    secret = sources.secrets.get(name)
    if secret is None:
        return None
    plain = decode_secret(secret.get("data") or {})
    return {key: value.decode(errors="surrogateescape") for key, value in plain.items()}


def _escape(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
