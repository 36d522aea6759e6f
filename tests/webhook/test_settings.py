from __future__ import annotations

import pytest

from berthmaster_webhook.settings import SettingsError, read_settings

POD = {"POD_NAMESPACE": "ns", "POD_NAME": "pod-1"}


def test_defaults_are_those_of_the_design() -> None:
    settings = read_settings([], POD)

    assert (settings.namespace, settings.pod_name) == ("ns", "pod-1")
    assert (settings.bind_address, settings.port) == ("0.0.0.0", 10250)  # noqa: S104
    assert (settings.takeover_wait_s, settings.assume_ttl_s) == (65.0, 70.0)


def test_command_line_wins_over_environment() -> None:
    environment = {**POD, "BERTHMASTER_BIND_ADDRESS": "127.0.0.1", "BERTHMASTER_PORT": "1"}

    settings = read_settings(["--port", "2", "--takeover-wait", "5"], environment)

    assert (settings.bind_address, settings.port) == ("127.0.0.1", 2)
    assert settings.takeover_wait_s == 5.0


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "POD_NAMESPACE"),
        (["--prot", "1"], POD, "--prot"),
        (["--port", "x"], POD, "--port"),
        ([], {**POD, "BERTHMASTER_PORT": "x"}, "--port"),
        (["--port", "70000"], POD, "1..65535"),
        (["--port", "8080"], POD, "both 8080"),
        (["--metrics-port", "10250"], POD, "--port and --metrics-port are both 10250"),
        (["--client-names", "api"], POD, "--client-names needs --client-ca-file"),
        (["--log-level", "loud"], POD, "debug, info, warning, error"),
        (["--queue-turns", "users"], POD, "none, namespaces"),
        (["--lease-retry", "9"], POD, "--lease-retry"),
        (["--takeover-wait", "-1"], POD, "negative"),
        (["--takeover-wait", "nan"], POD, "--takeover-wait"),
        (["--drain", "inf"], POD, "--drain"),
        (["--assume-ttl", "inf"], POD, "--assume-ttl"),
        (["--lease-duration", "inf"], POD, "--lease-duration"),
        (["--client-names", " ,", "--client-ca-file", "f"], POD, "has no name in it"),
    ],
)
def test_faults_are_named(arguments: list[str], environment: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_settings(arguments, environment)


def test_names_of_callers_are_read_one_by_one() -> None:
    settings = read_settings(["--client-names", "api, other,", "--client-ca-file", "f"], POD)

    assert settings.callers_names == ("api", "other")
