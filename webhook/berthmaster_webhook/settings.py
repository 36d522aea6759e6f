"""What the administrator may set, read once at start from the environment and the command line.

The command line wins over the environment, the environment over the defaults. An unknown argument or
a value that cannot be is an error that names it; nothing has been connected by then.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from berthmaster.api import names
from berthmaster.api.waits import ASSUME_TTL_S, TAKEOVER_WAIT_S

_PREFIX = "BERTHMASTER_"
_TURNS = ("none", "namespaces")
_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """Say which setting cannot be used, and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The webhook's settings; times in seconds."""

    # Where this process runs; both come from the downward API.
    namespace: str
    pod_name: str
    bind_address: str = "0.0.0.0"  # noqa: S104 - the API server has to reach us
    port: int = names.WEBHOOK_PORT
    # Only clients with a certificate of these authorities (PEM) call the webhook, and of those only
    # the ones with one of these common names, comma-separated; empty: all.
    client_ca_file: str = ""
    client_names: str = ""
    # Plain HTTP for the kubelet's probes, there before the certificate is.
    probe_port: int = 8080
    # TLS, for Prometheus and others whom the API server lets read.
    metrics_port: int = names.METRICS_PORT
    # The scheduler-extender protocol, TLS; 0 serves it nowhere. Only who shows a certificate of the
    # authorities in the first file gets an answer, or the token in the second, or both.
    extender_port: int = 0
    extender_client_ca_file: str = ""
    extender_token_file: str = ""
    # The first for answers of a leader that crashed, the second for an answer whose pod is not seen.
    takeover_wait_s: float = TAKEOVER_WAIT_S
    assume_ttl_s: float = ASSUME_TTL_S
    lease_duration_s: float = 6.0
    lease_renew_deadline_s: float = 4.0
    lease_retry_s: float = 1.0
    # Whether namespaces take turns in the queue: `none`, or `namespaces`.
    queue_turns: str = "none"
    # How long requests that still come after SIGTERM are answered.
    drain_s: float = 5.0
    log_level: str = "info"
    kubeconfig: str | None = None

    @property
    def callers_names(self) -> tuple[str, ...]:
        """Return the names in `client_names`."""
        return tuple(name for it in self.client_names.split(",") if (name := it.strip()))


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Return the settings.

    Raises:
        SettingsError: an argument is unknown, or a value is missing or not possible.
    """
    parsed = _parser(environment).parse_args(arguments)
    settings = Settings(**vars(parsed))
    _check(settings)
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # argparse would exit
        raise SettingsError(message)


def _parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="berthmaster-webhook", description="Places pods while they are being created."
    )

    def add(
        name: str, kind: type, text: str, *, variable: str = "", default: object = None
    ) -> None:
        known = variable or _PREFIX + name.upper()
        fallback = getattr(Settings, "__dataclass_fields__")[name].default  # noqa: B009
        if not isinstance(fallback, str | int | float):
            fallback = default
        parser.add_argument(
            "--" + name.removesuffix("_s").replace("_", "-"),
            dest=name,
            type=kind,
            # argparse puts text defaults through `type`, so a bad variable is reported as well.
            default=environment.get(known) or fallback,
            help=f"{text} (environment: {known})",
        )

    add("namespace", str, "own namespace", variable="POD_NAMESPACE", default="")
    add("pod_name", str, "own pod", variable="POD_NAME", default="")
    add("bind_address", str, "address to listen on")
    add("port", int, "port of the admission endpoint, TLS")
    add("client_ca_file", str, "authorities of the API server's client certificate, PEM")
    add("client_names", str, "its common names, comma-separated")
    add("probe_port", int, "port of /healthz and /readyz, plain HTTP")
    add("metrics_port", int, "port of /metrics, TLS; who asks shows a bearer token")
    add("extender_port", int, "port of the scheduler-extender protocol, TLS; 0: none")
    add("extender_client_ca_file", str, "authorities of the extender's clients, PEM")
    add("extender_token_file", str, "file with the token that the extender's clients show")
    add("takeover_wait_s", float, "seconds a leader waits after one that crashed")
    add("assume_ttl_s", float, "seconds until an answer whose pod never came lapses")
    add("lease_duration_s", float, "seconds until a silent leader's lease is free")
    add("lease_renew_deadline_s", float, "seconds a leader trusts its last renewal")
    add("lease_retry_s", float, "seconds between renewals")
    add("queue_turns", str, "none, or namespaces: those take turns in the queue")
    add("drain_s", float, "seconds of answering after SIGTERM")
    add("log_level", str, "debug, info, warning or error")
    add("kubeconfig", str, "kubeconfig file; absent: KUBECONFIG, then the pod's account")
    return parser


def _check(settings: Settings) -> None:
    ports = {
        "port": settings.port,
        "probe-port": settings.probe_port,
        "metrics-port": settings.metrics_port,
    }
    faults = [
        f"{option} is missing: set it, or {variable}"
        for option, variable, value in (
            ("--namespace", "POD_NAMESPACE", settings.namespace),
            ("--pod-name", "POD_NAME", settings.pod_name),
        )
        if not value
    ]
    faults += [
        f"--{name} must be 1..65535, found {port}"
        for name, port in ports.items()
        if not 0 < port < 65536
    ]
    faults += [
        f"--{one} and --{other} are both {ports[one]}"
        for one, other in combinations(ports, 2)
        if ports[one] == ports[other]
    ]
    if settings.client_names and not settings.client_ca_file:
        faults.append("--client-names needs --client-ca-file: who shows no certificate has no name")
    if settings.client_names and not settings.callers_names:
        faults.append(f"--client-names {settings.client_names!r} has no name in it")
    if settings.extender_port:
        faults += _extender_faults(settings)
    if settings.log_level not in _LEVELS:
        faults.append(
            f"--log-level must be one of {', '.join(_LEVELS)}, found {settings.log_level}"
        )
    if settings.queue_turns not in _TURNS:
        faults.append(
            f"--queue-turns must be one of {', '.join(_TURNS)}, found {settings.queue_turns}"
        )
    faults += [
        f"--{name} must be a number of seconds and not negative, found {seconds:g}"
        for name, seconds in (
            ("takeover-wait", settings.takeover_wait_s),
            ("drain", settings.drain_s),
        )
        if not 0 <= seconds < math.inf
    ]
    if not 0 < settings.assume_ttl_s < math.inf:
        faults.append(
            f"--assume-ttl must be a number of seconds above 0, found {settings.assume_ttl_s:g}"
        )
    duration, deadline, retry = (
        settings.lease_duration_s,
        settings.lease_renew_deadline_s,
        settings.lease_retry_s,
    )
    if not math.inf > duration > deadline > retry * 1.2 > 0:
        faults.append(
            "--lease-duration > --lease-renew-deadline > 1.2 * --lease-retry > 0 must hold, "
            f"found {duration:g}, {deadline:g}, {retry:g}"
        )
    if faults:
        raise SettingsError("; ".join(faults))


def _extender_faults(settings: Settings) -> list[str]:
    faults = []
    if not 0 < settings.extender_port < 65536:
        faults.append(f"--extender-port must be 0..65535, found {settings.extender_port}")
    if settings.extender_port in (settings.port, settings.probe_port, settings.metrics_port):
        faults.append(f"--extender-port {settings.extender_port} is another one's port as well")
    if not (settings.extender_client_ca_file or settings.extender_token_file):
        faults.append(
            "--extender-port needs --extender-client-ca-file or --extender-token-file: "
            "whoever gets an answer can bind pods"
        )
    return faults
