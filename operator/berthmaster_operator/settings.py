"""What the operator is told from outside, read once at start: environment, then command line.

Nobody else in this package looks at the environment (the cluster's address and credentials are the
client's business). Times are seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from berthmaster.api import names
from berthmaster_operator.model_fetching import DEFAULT_TIMEOUT_S, read_origin
from berthmaster_operator.power.trust import read_hosts

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Who issues the webhook's certificate: we, or somebody who puts it into `names.ISSUED_SECRET`.
CERTIFICATE_ISSUERS = ("operator", "secret")
# What puts the gate on pods: policies in the API server, or, where it has none yet, our own webhook.
GATES = ("policy", "webhook")
# What is done with placements of datasets that are not true: nothing; decide by the true ones; write them, too.
DATASET_PLACEMENTS = ("stored", "corrected", "written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective configuration."""

    # Where our Lease and the webhook's Secrets are.
    namespace: str = names.SYSTEM_NAMESPACE
    # This process' name in the Lease and in Events.
    pod_name: str = "berthmaster-operator"
    # Where the disk models' ConfigMap is; of two NodeDiskDevices of a node the one here counts.
    diskio_namespace: str = names.DISKIO_NAMESPACE
    bind_address: str = "0.0.0.0"  # noqa: S104 - the kubelet probes from outside the pod
    health_port: int = 8080
    # TLS, for those whom the API server lets read metrics.
    metrics_port: int = names.METRICS_PORT
    log_level: str = "INFO"
    # How many nodes are written at the same time; each write costs the API server some 3 ms of CPU.
    workers: int = 8
    # A NodeInventory is written at most once in so many seconds.
    inventory_pause_s: float = 5.0
    # A burst of pods for one node becomes one write, at the price of this delay.
    settle_s: float = 0.2
    # How long a Node must be gone before what its driver left behind is deleted.
    leftover_grace_s: float = 60.0
    # Who issues the webhook's certificate, one of `CERTIFICATE_ISSUERS`.
    certificate_issuer: str = "operator"
    # What gates pods, one of `GATES`.
    gates: str = "policy"
    # What is done about the placements of datasets, one of `DATASET_PLACEMENTS`.
    dataset_placements: str = "stored"
    # Where the pods of the Ceph cache plugin's caches are.
    cache_namespace: str = "rook-ceph"
    # How often the custom kinds are listed to find deletions that a broken watch swallowed.
    audit_s: float = 300.0
    # From where disk models may be fetched, such as `https://models.example.com`; none: from nowhere.
    model_origins: tuple[str, ...] = ()
    # Authorities (PEM) that those are checked against, beside the system's.
    model_ca_file: Path | None = None
    # How long fetching one model may take.
    model_timeout_s: float = DEFAULT_TIMEOUT_S
    # Authorities (PEM) that meters, BMCs and power model servers are checked against, beside the
    # system's, and those hosts and networks whose certificates are not checked.
    power_ca_file: Path | None = None
    power_unverified: tuple[str, ...] = ()

    def as_fields(self) -> dict[str, Any]:
        """Return the configuration for printing; there are no secrets in it."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Combine defaults, environment and command line, the later winning.

    Exits with a message (argparse's way) when an argument is unknown or has no valid value.
    """
    default = Settings()
    parser = argparse.ArgumentParser(prog="berthmaster-operator", description=__doc__)
    for flag, variable, fallback, text in (
        ("--namespace", "POD_NAMESPACE", default.namespace, "own namespace"),
        ("--pod-name", "POD_NAME", default.pod_name, "own pod"),
        (
            "--bind-address",
            "BERTHMASTER_BIND_ADDRESS",
            default.bind_address,
            "address to listen on",
        ),
    ):
        parser.add_argument(
            flag,
            default=environment.get(variable) or fallback,
            help=f"{text} (environment: {variable})",
        )
    for flag, fallback, text in (
        ("--diskio-namespace", default.diskio_namespace, "where the disk models' ConfigMap is"),
        ("--cache-namespace", default.cache_namespace, "where the pods of Ceph caches are"),
    ):
        parser.add_argument(flag, default=fallback, help=text)
    for flag, port, text in (
        ("--health-port", default.health_port, "port of /healthz and /readyz, plain HTTP"),
        (
            "--metrics-port",
            default.metrics_port,
            "port of /metrics, TLS; who asks shows a bearer token",
        ),
    ):
        parser.add_argument(flag, type=_port, default=port, help=text)
    for flag, choices, fallback, text in (
        ("--log-level", LOG_LEVELS, default.log_level, "the least that is logged"),
        (
            "--certificate-issuer",
            CERTIFICATE_ISSUERS,
            default.certificate_issuer,
            "who issues the webhook's certificate: the operator, or who fills a Secret",
        ),
        (
            "--gates",
            GATES,
            default.gates,
            "what gates pods: policies in the API server, or our webhook",
        ),
        (
            "--dataset-placements",
            DATASET_PLACEMENTS,
            default.dataset_placements,
            "placements of Ceph caches: taken as stored, corrected in memory, or written, too",
        ),
    ):
        variable = f"BERTHMASTER_{_field(flag).upper()}"
        parser.add_argument(
            flag,
            # Not `choices`: argparse would not hold a default from the environment to them.
            type=_one_of(choices, variable),
            metavar="|".join(choices),
            default=environment.get(variable) or fallback,
            help=f"{text} (environment: {variable})",
        )
    parser.add_argument(
        "--model-origins",
        type=_origins,
        default=default.model_origins,
        metavar="ORIGIN[,ORIGIN...]",
        help="disk models may be fetched from these, such as https://models.example.com",
    )
    for flag, whom in (
        ("--model-ca-file", "whoever serves disk models"),
        ("--power-ca-file", "meters, BMCs and model servers"),
    ):
        parser.add_argument(
            flag,
            type=_file,
            metavar="FILE",
            help=f"authorities (PEM) of {whom}, beside the system's",
        )
    parser.add_argument(
        "--power-unverified",
        type=_hosts,
        default=default.power_unverified,
        metavar="HOST|NETWORK[,...]",
        help="certificates of these are not checked, such as bmc-1.example,10.0.100.0/24",
    )
    parser.add_argument(
        "--workers",
        type=_positive_int,
        default=default.workers,
        help="nodes that are written at the same time",
    )
    for flag, seconds, text in (
        ("--inventory-pause", default.inventory_pause_s, "between two writes of an inventory"),
        ("--settle", default.settle_s, "for pods of a burst to become one write"),
        (
            "--leftover-grace",
            default.leftover_grace_s,
            "until what a deleted node's driver left is deleted",
        ),
        ("--audit", default.audit_s, "between two lists that find what a watch has missed"),
        ("--model-timeout", default.model_timeout_s, "for fetching one disk model"),
    ):
        parser.add_argument(
            flag,
            type=_seconds,
            default=seconds,
            metavar="SECONDS",
            dest=f"{_field(flag)}_s",
            help=text,
        )
    return Settings(**vars(parser.parse_args(list(arguments))))


def _origins(text: str) -> tuple[str, ...]:
    try:
        return tuple(read_origin(it) for it in text.split(",") if it.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return read_hosts(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return path


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _one_of(choices: Sequence[str], variable: str) -> Callable[[str], str]:
    known = {it.lower(): it for it in choices}

    def check(text: str) -> str:
        if text.lower() not in known:
            expected = ", ".join(choices)
            raise argparse.ArgumentTypeError(
                f'"{text}" is not one of {expected} (environment: {variable})'
            )
        return known[text.lower()]

    return check


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..65535")
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..86400 seconds")
    return number
