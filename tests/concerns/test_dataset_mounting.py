"""Mounting as Datashim's label webhook does it, without its faults."""

from __future__ import annotations

from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from berthmaster.api.datasets import Dataset
from berthmaster.api.objects import pod_from_manifest
from berthmaster.concerns.dataset.mounting import mount, unmounted
from berthmaster.concerns.shape import Preparation

NAMES = ("a", "b", "c")


def find(name: str) -> Dataset | None:
    if name not in NAMES:
        return None
    return Dataset(group="datashim.io", namespace="ml", name=name, is_read_only=name == "c")


def mounted(labels: dict[str, str], **spec: Any) -> Preparation:
    pod = {"metadata": {"name": "p", "labels": labels}, "spec": {"containers": [{}], **spec}}
    return mount(pod, "ml", find)


def after(labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    pod = {"metadata": {"name": "p", "labels": labels}, "spec": {"containers": [{}], **spec}}
    done: dict[str, dict[str, Any]] = jsonpatch.apply_patch(pod, mount(pod, "ml", find).operations)
    return done["spec"]


def test_absent_lists_are_made() -> None:
    assert after({"dataset.0.id": "c", "dataset.0.useas": "mount"}) == {
        "containers": [{"volumeMounts": [{"name": "c", "mountPath": "/mnt/datasets/c"}]}],
        "volumes": [{"name": "c", "persistentVolumeClaim": {"claimName": "c", "readOnly": True}}],
    }


def test_a_volume_that_is_there_is_mounted_where_it_is_not() -> None:
    volume = {"name": "mine", "persistentVolumeClaim": {"claimName": "a"}}
    spec = after(
        {"dataset.0.id": "a", "dataset.0.useas": "mount"},
        volumes=[volume],
        containers=[{"volumeMounts": [{"name": "mine", "mountPath": "/x"}]}, {}],
    )
    assert spec["volumes"] == [volume]
    assert spec["containers"] == [
        {"volumeMounts": [{"name": "mine", "mountPath": "/x"}]},
        {"volumeMounts": [{"name": "mine", "mountPath": "/mnt/datasets/a"}]},
    ]


def test_no_word_is_lost_after_a_repeated_one() -> None:
    spec = after({"dataset.0.id": "a", "dataset.0.useas": "mount.mount.configmap"})
    assert [it["name"] for it in spec["volumes"]] == ["a"]
    assert spec["containers"][0]["envFrom"] == [
        {"prefix": "a_", "configMapRef": {"name": "a"}},
        {"prefix": "a_", "secretRef": {"name": "a"}},
    ]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"dataset.0.useas": "mount"}, "dataset  not found in namespace ml"),
        ({"dataset.0.name": "a"}, "dataset label is in the wrong format dataset.0.name"),
        ({"dataset.0.id": "a", "dataset.00.id": "b"}, "repeat declaration of name id for dataset"),
        ({"dataset.0.id.x": "a"}, "label dataset.0.id.x is not in the right format"),
        ({"dataset.1x.id": "a"}, "could not convert dataset index 1x to int"),
        ({"dataset.0.id": "a", "dataset.0.useas": "mount."}, "useas for this dataset is not recog"),
        ({"dataset.0.id": "a", "dataset.0.useas": ""}, "useas for this dataset is not recognized"),
    ],
)
def test_a_pod_that_cannot_be_understood_is_refused(labels: dict[str, str], words: str) -> None:
    found = mounted(labels)
    assert (found.is_allowed, found.code) == (False, 400)
    assert words in found.message


use_as = st.lists(st.sampled_from(["mount", "configmap"]), min_size=1, max_size=3).map(".".join)
containers = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "volumeMounts": st.lists(
                st.sampled_from(NAMES).map(lambda it: {"name": it, "mountPath": f"/{it}"}),
                max_size=2,
            ),
            "envFrom": st.just([{"configMapRef": {"name": "a"}}]),
        },
    ),
    min_size=1,
    max_size=3,
)


@given(st.permutations(NAMES), st.lists(use_as, min_size=3, max_size=3), containers, containers)
def test_a_second_call_adds_nothing_and_nothing_is_taken_away(
    names: list[str], uses: list[str], main: list[Any], init: list[Any]
) -> None:
    labels = {f"dataset.{index}.id": it for index, it in enumerate(names)}
    labels |= {f"dataset.{index}.useas": it for index, it in enumerate(uses)}
    pod: dict[str, Any] = {
        "metadata": {"name": "p", "labels": labels},
        "spec": {"containers": main, "initContainers": init},
    }
    done = jsonpatch.apply_patch(pod, mount(pod, "ml", find).operations)

    assert mount(done, "ml", find).operations == []
    for kind in ("containers", "initContainers"):
        for before, now in zip(pod["spec"][kind], done["spec"][kind], strict=True):
            for part, entries in before.items():
                assert now[part][: len(entries)] == entries


def test_a_stored_pod_without_its_volume_is_told_apart() -> None:
    labels = {"dataset.0.id": "a", "dataset.0.useas": "mount", "dataset.1.id": "b"}
    pod = {"metadata": {"name": "p", "labels": labels}, "spec": {"containers": [{}]}}
    assert unmounted(pod_from_manifest(pod)) == ("a",)
    done = jsonpatch.apply_patch(pod, mount(pod, "ml", find).operations)
    assert unmounted(pod_from_manifest(done)) == ()
    odd = {"metadata": {"name": "p", "labels": {"dataset.0": "a"}}, "spec": {}}
    assert unmounted(pod_from_manifest(odd)) == ()


def test_any_whole_numbers_order_the_datasets() -> None:
    labels = {
        f"dataset.{number}.{what}": value
        for number, name in ((10, "a"), (-1, "b"), (9, "c"))
        for what, value in (("id", name), ("useas", "mount"))
    }
    assert [it["name"] for it in after(labels)["volumes"]] == ["b", "c", "a"]
