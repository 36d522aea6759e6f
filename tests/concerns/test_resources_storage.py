"""Which nodes the claims of a pod leave to it, by the rules of kube-scheduler's volume plugins."""

from __future__ import annotations

from typing import Any

import pytest

from berthmaster.api.storage import (
    claim_from_manifest,
    csi_node_from_manifest,
    storage_class_from_manifest,
    volume_from_manifest,
)
from berthmaster.concerns.shape import Surrounding
from concerns.judged import HOST, ZONE, Judged, Manifest, labelled

UNBOUND = "node(s) didn't find available persistent volumes to bind"
APART = "node(s) didn't match PersistentVolume's node affinity"
OTHER_ZONE = "node(s) had no available volume zone"
FULL = "node(s) exceed max volume count"
IN_USE = (
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already "
    "in-use by another pod"
)
LATE = "WaitForFirstConsumer"
EVERYWHERE = {"a1", "a2", "b1"}


def harbour() -> Judged:
    return Judged({"a1": "a", "a2": "a", "b1": "b"})


def claim(
    name: str,
    storage_class: str | None = "",
    *,
    volume: str = "",
    size: str = "1Gi",
    modes: tuple[str, ...] = ("ReadWriteOnce",),
    phase: str = "",
    annotations: Manifest | None = None,
    metadata: Manifest | None = None,
    **spec: Any,
) -> Surrounding:
    """A claim; with a volume it is bound to it."""
    notes = {
        **(annotations or {}),
        **({"pv.kubernetes.io/bind-completed": "yes"} if volume else {}),
    }
    return claim_from_manifest(
        {
            "metadata": {
                "namespace": "default",
                "name": name,
                "uid": f"uid-{name}",
                "annotations": notes,
                **(metadata or {}),
            },
            "spec": {
                "storageClassName": storage_class,
                "volumeName": volume,
                "accessModes": list(modes),
                "resources": {"requests": {"storage": size}},
                **spec,
            },
            "status": {"phase": phase},
        }
    )


def volume(
    name: str,
    storage_class: str = "",
    *,
    on: Manifest | None = None,
    size: str = "1Gi",
    modes: tuple[str, ...] = ("ReadWriteOnce",),
    labels: Manifest | None = None,
    phase: str = "Available",
    **spec: Any,
) -> Surrounding:
    """A volume that can be reached from nodes with certain labels, from all by default."""
    expressions = [{"key": key, "operator": "In", "values": on[key]} for key in on or {} if on]
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}
    return volume_from_manifest(
        {
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "storageClassName": storage_class,
                "capacity": {"storage": size},
                "accessModes": list(modes),
                **({"nodeAffinity": affinity} if on else {}),
                **spec,
            },
            "status": {"phase": phase},
        }
    )


def storage_class(
    name: str,
    provisioner: str = "kubernetes.io/no-provisioner",
    mode: str = LATE,
    *,
    zones: list[str] | None = None,
    created: str | None = None,
    is_default: bool = False,
) -> Surrounding:
    topologies = [{"matchLabelExpressions": [{"key": ZONE, "values": zones}]}] if zones else None
    default = {"storageclass.kubernetes.io/is-default-class": "true"} if is_default else {}
    return storage_class_from_manifest(
        {
            "metadata": {"name": name, "annotations": default, "creationTimestamp": created},
            "provisioner": provisioner,
            "volumeBindingMode": mode,
            "allowedTopologies": topologies,
        }
    )


def using(*names: str) -> Manifest:
    volumes = [{"name": it, "persistentVolumeClaim": {"claimName": it}} for it in names]
    return {"volumes": [{"name": "token", "projected": {}}, *volumes]}


def words(judged: Judged, **pod: Any) -> set[str]:
    return set(judged.why(**pod).values())


class TestBoundClaims:
    def test_the_volumes_nodes_are_left(self) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v"), volume("v", on={ZONE: ["a"]}, phase="Bound"))

        assert judged.why(**using("data")) == {"a1": "", "a2": "", "b1": APART}

    def test_a_volume_for_all_leaves_all(self) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v"), volume("v", phase="Bound"))

        assert judged.fits(**using("data")) == EVERYWHERE

    def test_all_claims_must_be_reached(self) -> None:
        judged = harbour()
        judged.observe(claim("one", volume="v"), volume("v", on={ZONE: ["a"]}))
        judged.observe(claim("two", volume="w"), volume("w", on={HOST: ["a2", "b1"]}))

        assert judged.fits(**using("one", "two")) == {"a2"}

    @pytest.mark.parametrize(
        ("labels", "fits"),
        [
            ({ZONE: "a"}, {"a1", "a2"}),
            ({ZONE: "a__b"}, EVERYWHERE),
            ({ZONE: "c__"}, EVERYWHERE),
            ({"failure-domain.beta.kubernetes.io/zone": "b"}, {"b1"}),
            ({"topology.kubernetes.io/region": "here"}, set()),
            ({"example.com/zone": "c"}, EVERYWHERE),
        ],
    )
    def test_zone_labels_still_count(self, labels: Manifest, fits: set[str]) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v"), volume("v", labels=labels))

        why = judged.why(**using("data"))

        assert {node for node in why if not why[node]} == fits
        assert set(why.values()) <= {"", OTHER_ZONE}

    def test_nodes_without_zones_take_zoned_volumes(self) -> None:
        judged = Judged({"n": ""})
        judged.observe(claim("data", volume="v"), volume("v", labels={ZONE: "a"}))

        assert judged.fits(**using("data")) == {"n"}


class TestClaimsThatMustWait:
    @pytest.mark.parametrize(
        ("found", "why"),
        [
            ((), 'persistentvolumeclaim "data" not found'),
            ((claim("data", volume="v"),), 'persistentvolume "v" not found'),
            (
                (claim("data", volume="v", phase="Lost"),),
                'persistentvolumeclaim "data" bound to non-existent persistentvolume "v"',
            ),
            (
                (claim("data", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),),
                'persistentvolumeclaim "data" is being deleted',
            ),
            (
                (claim("data", "now"), storage_class("now", "example.com/csi", "Immediate")),
                "pod has unbound immediate PersistentVolumeClaims",
            ),
            ((claim("data", "unknown"),), "pod has unbound immediate PersistentVolumeClaims"),
            ((claim("data", None),), "pod has unbound immediate PersistentVolumeClaims"),
        ],
    )
    def test_no_node_will_do(self, found: tuple[Surrounding, ...], why: str) -> None:
        judged = harbour()
        judged.observe(*found)

        assert words(judged, **using("data")) == {why}

    def test_the_decision_says_so_for_all_nodes_at_once(self) -> None:
        judged = harbour()

        decision = judged.engine.decide(judged.request(labelled("new", {}, **using("data"))), "d")

        assert decision.describe() == (
            '0/3 nodes: 3 (a1, a2, b1) persistentvolumeclaim "data" not found'
        )

    def test_its_coming_is_news(self) -> None:
        judged = harbour()
        before = judged.engine.news
        judged.observe(claim("data", volume="v"), volume("v"))

        assert judged.engine.news != before
        assert judged.fits(**using("data")) == EVERYWHERE


class TestLocalVolumes:
    def free(self, **of_a1: Any) -> Judged:
        judged = harbour()
        judged.observe(storage_class("local"), volume("v1", "local", on={HOST: ["a1"]}, **of_a1))
        return judged

    def test_only_nodes_with_a_free_volume_will_do(self) -> None:
        judged = self.free()
        judged.observe(claim("data", "local"))

        assert judged.why(**using("data")) == {"a1": "", "a2": UNBOUND, "b1": UNBOUND}

    @pytest.mark.parametrize(
        ("of_volume", "of_claim", "fits"),
        [
            ({"size": "2Gi"}, {"size": "2G"}, True),
            ({"size": "2G"}, {"size": "2Gi"}, False),
            ({}, {"modes": ("ReadWriteMany",)}, False),
            ({"modes": ("ReadWriteOnce", "ReadWriteMany")}, {"modes": ("ReadWriteMany",)}, True),
            ({"volumeMode": "Block"}, {}, False),
            ({"volumeMode": "Block"}, {"volumeMode": "Block"}, True),
            ({"labels": {"speed": "fast"}}, {"selector": {"matchLabels": {"speed": "fast"}}}, True),
            (
                {"labels": {"speed": "slow"}},
                {"selector": {"matchLabels": {"speed": "fast"}}},
                False,
            ),
            ({"volumeAttributesClassName": "gold"}, {}, False),
            ({"phase": "Released"}, {}, False),
            ({"claimRef": {"namespace": "default", "name": "other"}}, {}, False),
            ({"claimRef": {"namespace": "default", "name": "data"}}, {}, True),
            ({"claimRef": {"namespace": "default", "name": "data", "uid": "old"}}, {}, False),
        ],
    )
    def test_the_volume_must_suit(self, of_volume: Any, of_claim: Any, fits: bool) -> None:
        judged = self.free(**of_volume)
        judged.observe(claim("data", "local", **of_claim))

        assert judged.fits(**using("data")) == ({"a1"} if fits else set())

    def test_a_volume_that_is_kept_for_the_claim_is_its_only_one(self) -> None:
        judged = self.free()
        kept: Manifest = {"claimRef": {"namespace": "default", "name": "data"}}
        judged.observe(claim("data", "local"), volume("v2", "local", on={HOST: ["b1"]}, **kept))

        assert judged.fits(**using("data")) == {"b1"}

    def test_two_claims_need_two_volumes(self) -> None:
        judged = self.free()
        judged.observe(claim("one", "local"), claim("two", "local"))
        assert judged.fits(**using("one", "two")) == set()

        judged.observe(volume("v2", "local", on={HOST: ["a1"]}))
        assert judged.fits(**using("one", "two")) == {"a1"}

    def test_the_small_claim_leaves_the_large_volume(self) -> None:
        judged = self.free(size="9Gi")
        judged.observe(volume("v2", "local", on={HOST: ["a1"]}, size="2Gi"))
        judged.observe(claim("large", "local", size="8Gi"), claim("small", "local", size="1Gi"))

        assert judged.fits(**using("large", "small")) == {"a1"}

    def test_volumes_are_gone_with_the_answers_before(self) -> None:
        judged = self.free()
        judged.observe(claim("one", "local"), claim("two", "local"))
        decision = judged.assume("a1", **using("one"))

        assert judged.fits(**using("two")) == set()
        judged.engine.ledger.drop(decision)
        assert judged.fits(**using("two")) == {"a1"}

    def test_a_claim_that_is_about_to_be_bound_keeps_its_pods_together(self) -> None:
        judged = self.free()
        judged.observe(volume("v2", "local", on={HOST: ["b1"]}), claim("one", "local"))
        judged.assume("b1", **using("one"))

        assert judged.fits(**using("one")) == {"b1"}

    def test_volumes_come_and_go(self) -> None:
        judged = self.free()
        judged.observe(claim("data", "local"))
        assert judged.fits(**using("data")) == {"a1"}
        second = volume("v2", "local", on={HOST: ["b1"]})
        judged.observe(second)
        assert judged.fits(**using("data")) == {"a1", "b1"}
        judged.observe(second, is_gone=True)
        assert judged.fits(**using("data")) == {"a1"}


class TestClaimsThatWaitForTheirPod:
    def test_a_volume_can_be_made_anywhere(self) -> None:
        judged = harbour()
        judged.observe(storage_class("late", "example.com/csi"), claim("data", "late"))

        assert judged.fits(**using("data")) == EVERYWHERE

    def test_where_the_class_allows_it(self) -> None:
        judged = harbour()
        judged.observe(storage_class("late", "example.com/csi", zones=["b"]), claim("data", "late"))

        assert judged.why(**using("data")) == {"a1": UNBOUND, "a2": UNBOUND, "b1": ""}

    def test_a_free_volume_will_do_elsewhere(self) -> None:
        judged = harbour()
        judged.observe(storage_class("late", "example.com/csi", zones=["b"]), claim("data", "late"))
        judged.observe(volume("v", "late", on={HOST: ["a2"]}))

        assert judged.fits(**using("data")) == {"a2", "b1"}

    def test_a_node_that_was_selected_stays_selected(self) -> None:
        judged = harbour()
        selected = {"volume.kubernetes.io/selected-node": "a2"}
        judged.observe(storage_class("late", "example.com/csi"))
        judged.observe(claim("data", "late", annotations=selected))

        assert judged.fits(**using("data")) == {"a2"}

    def test_the_old_annotation_names_the_class(self) -> None:
        judged = harbour()
        named = {"volume.beta.kubernetes.io/storage-class": "late"}
        judged.observe(storage_class("late", "example.com/csi", zones=["b"]))
        judged.observe(claim("data", "other", annotations=named))

        assert judged.fits(**using("data")) == {"b1"}


class TestEphemeralVolumes:
    def pod(self, storage_class_name: str | None = None) -> Manifest:
        spec = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": storage_class_name,
        }
        return {"volumes": [{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}]}

    def test_the_template_is_judged_before_the_claim_is_there(self) -> None:
        judged = harbour()
        judged.observe(storage_class("late", "example.com/csi", zones=["b"]))

        assert judged.fits(**self.pod("late")) == {"b1"}

    def test_the_newest_default_class_is_meant(self) -> None:
        judged = harbour()
        judged.observe(
            storage_class(
                "old", "x.com/csi", zones=["a"], is_default=True, created="2020-01-01T00:00:00Z"
            ),
            storage_class(
                "new", "x.com/csi", zones=["b"], is_default=True, created="2021-01-01T00:00:00Z"
            ),
        )

        assert judged.fits(**self.pod()) == {"b1"}
        assert judged.fits(**self.pod("old")) == {"a1", "a2"}

    def test_a_class_that_binds_at_once_must_have_bound(self) -> None:
        judged = harbour()
        judged.observe(storage_class("now", "example.com/csi", "Immediate"))

        assert words(judged, **self.pod("now")) == {
            'waiting for ephemeral volume controller to create the persistentvolumeclaim "new-tmp"'
        }

    @pytest.mark.parametrize(("owner", "fits"), [("uid-new", EVERYWHERE), ("uid-old", set())])
    def test_the_claim_must_be_the_pods_own(self, owner: str, fits: set[str]) -> None:
        judged = harbour()
        owners = [{"kind": "Pod", "name": "new", "uid": owner, "controller": True}]
        judged.observe(storage_class("late", "example.com/csi"))
        judged.observe(claim("new-tmp", "late", metadata={"ownerReferences": owners}))

        assert judged.fits(is_stored=True, **self.pod("late")) == fits


class TestOncePod:
    def test_a_claim_for_one_pod_has_one(self) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v", modes=("ReadWriteOncePod",)), volume("v"))
        assert judged.fits(**using("data")) == EVERYWHERE

        pod = judged.put("a1", **using("data"))
        assert words(judged, **using("data")) == {IN_USE}
        judged.engine.ledger.forget(pod)
        assert judged.fits(**using("data")) == EVERYWHERE

    def test_answers_count(self) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v", modes=("ReadWriteOncePod",)), volume("v"))
        judged.assume("a1", **using("data"))

        assert judged.fits(**using("data")) == set()

    def test_other_modes_are_shared(self) -> None:
        judged = harbour()
        judged.observe(claim("data", volume="v"), volume("v"))
        judged.put("a1", **using("data"))

        assert judged.fits(**using("data")) == EVERYWHERE


class TestLimits:
    def limited(self, count: int) -> Judged:
        judged = harbour()
        drivers = [{"name": "example.com/csi", "nodeID": "a1", "allocatable": {"count": count}}]
        judged.observe(
            csi_node_from_manifest({"metadata": {"name": "a1"}, "spec": {"drivers": drivers}})
        )
        judged.observe(storage_class("late", "example.com/csi"))
        for name in ("one", "two", "three"):
            csi = {"driver": "example.com/csi", "volumeHandle": f"handle-{name}"}
            judged.observe(claim(name, volume=f"v-{name}"), volume(f"v-{name}", csi=csi))
        return judged

    def test_a_node_takes_as_many_volumes_as_its_driver(self) -> None:
        judged = self.limited(2)
        judged.put("a1", **using("one"))

        assert judged.fits(**using("two")) == EVERYWHERE
        assert judged.why(**using("two", "three")) == {"a1": FULL, "a2": "", "b1": ""}

    def test_a_volume_that_is_there_already_adds_nothing(self) -> None:
        judged = self.limited(1)
        judged.put("a1", **using("one"))

        assert judged.fits(**using("one")) == EVERYWHERE
        assert judged.fits(**using("two")) == {"a2", "b1"}

    def test_claims_count_before_they_are_bound(self) -> None:
        judged = self.limited(1)
        judged.observe(claim("open", "late"))
        pod = judged.put("a1", **using("open"))

        assert judged.fits(**using("two")) == {"a2", "b1"}
        judged.engine.ledger.forget(pod)
        assert judged.fits(**using("two")) == EVERYWHERE

    def test_other_drivers_have_no_limit(self) -> None:
        judged = self.limited(0)
        other = {"driver": "example.com/other", "volumeHandle": "h"}
        judged.observe(claim("four", volume="v-four"), volume("v-four", csi=other))

        assert judged.fits(**using("four")) == EVERYWHERE
        assert judged.fits(**using("one")) == {"a2", "b1"}
