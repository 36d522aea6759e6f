"""What a container's process is started with."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from berthmaster_sandbox.addresses import AddressError, AddressPool, bind_address, pod_address
from berthmaster_sandbox.kubelet.environment import (
    ConfigError,
    Sources,
    build_launch,
    expand,
    field_value,
    mount_variable,
    referenced_objects,
    resolve_variables,
    translate_paths,
)

POD: dict[str, Any] = {
    "metadata": {
        "name": "p",
        "namespace": "n",
        "uid": "u",
        "labels": {"b": "2", "a": '1"'},
    },
    "spec": {"nodeName": "sandbox-1", "serviceAccountName": "robot"},
    "status": {"podIP": "10.244.1.2", "hostIP": "127.0.0.1"},
}


def resolve(*env: dict[str, Any], sources: Sources | None = None, **more: Any) -> dict[str, str]:
    return resolve_variables(
        POD, {"env": list(env), **more}, sources=sources or Sources(), base_env={"BASE": "b"}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a$(X)b", "a1b", id="known"),
        pytest.param("$(Y)", "$(Y)", id="unknown stays"),
        pytest.param("$$(X)", "$(X)", id="escaped"),
        pytest.param("$X ${X}", "$X ${X}", id="shell syntax stays"),
    ],
)
def test_references_expand_as_in_kubernetes(text: str, expected: str) -> None:
    assert expand(text, {"X": "1"}) == expected


def test_variable_refers_only_to_earlier_ones() -> None:
    env = resolve({"name": "A", "value": "$(BASE)$(B)"}, {"name": "B", "value": "$(A)"})

    assert env["A"] == "b$(B)"
    assert env["B"] == "b$(B)"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.uid", "u"),
        ("metadata.labels['b']", "2"),
        ("metadata.labels['absent']", ""),
        ("metadata.labels", 'a="1\\""\nb="2"'),
        ("spec.nodeName", "sandbox-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.podIP", "10.244.1.2"),
        ("status.hostIP", "127.0.0.1"),
    ],
)
def test_downward_api_offers_field(path: str, expected: str) -> None:
    assert field_value(POD, path) == expected


def test_values_come_from_config_maps_and_secrets() -> None:
    sources = Sources(
        config_maps={"c": {"data": {"k": "v"}}},
        secrets={"s": {"data": {"k": base64.b64encode(b"hidden").decode()}}},
    )

    env = resolve(
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        sources=sources,
        envFrom=[{"prefix": "P_", "configMapRef": {"name": "c"}}],
    )

    assert (env["A"], env["B"], env["P_k"]) == ("v", "hidden", "v")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMapKeyRef": {"name": "x", "key": "k"}}, "configmap 'x' not found"),
        ({"secretKeyRef": {"name": "s", "key": "k"}}, "secret 's' has no key 'k'"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "resourceFieldRef is not supported"),
    ],
)
def test_variable_without_source_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"name": "A", "valueFrom": source}, sources=Sources(secrets={"s": {}}))


def test_optional_variable_is_left_out() -> None:
    reference = {"name": "x", "key": "k", "optional": True}

    env = resolve(
        {"name": "A", "valueFrom": {"configMapKeyRef": reference}},
        envFrom=[{"secretRef": {"name": "x", "optional": True}}],
    )

    assert env == {"BASE": "b"}


def test_referenced_objects_are_found() -> None:
    container = {
        "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c1", "key": "k"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "c2"}}, {"secretRef": {"name": "s2"}}],
    }

    config_maps, secrets = referenced_objects(container)

    assert sorted(config_maps) == ["c1", "c2"]
    assert sorted(secrets) == ["s1", "s2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--file=/etc/app/x.yaml", "--file=/pod/app/x.yaml"),
        ("/etc/app", "/pod/app"),
        ("/etc/apple/x", "/etc/apple/x"),
        ("/srv/etc/app/x", "/srv/etc/app/x"),
        ("cat /etc/app/deep/x", "cat /pod/deep/x"),
        ("a:/etc/app/x,/etc/app/y", "a:/pod/app/x,/pod/app/y"),
    ],
)
def test_mount_paths_become_folders(text: str, expected: str) -> None:
    mounts = {"/etc/app": "/pod/app", "/etc/app/deep/": "/pod/deep"}

    assert translate_paths(text, mounts) == expected


def test_launch_takes_entrypoint_without_command() -> None:
    launch = build_launch(
        POD,
        {"args": ["--on", "$(BERTHMASTER_BIND_ADDRESS)"]},
        entrypoint=("serve",),
        sources=Sources(),
        base_env={"BERTHMASTER_BIND_ADDRESS": "127.244.1.2"},
        mounts={},
    )

    assert launch.argv == ("serve", "--on", "127.244.1.2")


def test_launch_without_any_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a command"):
        build_launch(POD, {}, entrypoint=(), sources=Sources(), base_env={}, mounts={})


def test_sandbox_folders_are_not_translated_twice() -> None:
    launch = build_launch(
        POD,
        {"command": ["x"], "env": [{"name": "FILE", "value": "/data/f"}]},
        entrypoint=(),
        sources=Sources(),
        base_env={"TMPDIR": "/data/tmp"},
        mounts={"/data": "/pod/data"},
    )

    assert launch.env == {"TMPDIR": "/data/tmp", "FILE": "/pod/data/f"}


def test_volume_names_make_variable_names() -> None:
    assert mount_variable("my-data.1") == "BERTHMASTER_MOUNT_MY_DATA_1"


def test_proxy_settings_are_removed() -> None:
    env = [{"name": name, "value": "x"} for name in ("HTTPS_PROXY", "no_proxy", "PROXY_MODE")]

    launch = build_launch(
        POD,
        {"command": ["x"], "env": env},
        entrypoint=(),
        sources=Sources(),
        base_env={},
        mounts={},
    )

    assert launch.env == {"PROXY_MODE": "x"}


def test_pod_address_has_a_loopback_twin() -> None:
    assert pod_address(244, 1, 7) == "10.244.1.7"
    assert bind_address("10.244.1.7", 244) == "127.244.1.7"


@pytest.mark.parametrize("address", ["10.200.0.1", "192.168.244.1", "fd00::1", "nonsense"])
def test_foreign_address_has_no_twin(address: str) -> None:
    with pytest.raises(AddressError):
        bind_address(address, 244)


def test_pool_gives_each_address_once() -> None:
    pool = AddressPool(244, 1)

    addresses = [pool.take() for _ in range(253)]

    assert len(set(addresses)) == 253
    with pytest.raises(AddressError, match="no pod address left"):
        pool.take()


def test_pool_keeps_the_address_that_a_pod_had() -> None:
    pool = AddressPool(244, 1)

    assert pool.take("10.244.1.9") == "10.244.1.9"
    assert pool.take("10.244.1.9") == "10.244.1.2"
    assert pool.take("10.244.2.9") == "10.244.1.3"


def test_freed_address_is_not_reused_at_once() -> None:
    pool = AddressPool(244, 1)
    first = pool.take()

    pool.give_back(first)

    assert pool.take() != first
