"""Random clusters and random pods for the differential test: small, and dense with clashes.

Few zones, few labels, few ports and small nodes, so that each rule of the scheduler refuses often and
accepts often. Everything comes from one random number generator, so a seed tells the whole world.
"""

from __future__ import annotations

from random import Random
from typing import Any

Manifest = dict[str, Any]

NAMESPACES = {"blue": {"team": "sea"}, "green": {"team": "land"}, "grey": {}}
APPS, TIERS, HASHES = ("web", "db", "cache"), ("front", "back"), ("h1", "h2")
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
REGION = "topology.kubernetes.io/region"
OLD_ZONE = "failure-domain.beta.kubernetes.io/zone"
RACK, DISK = "example.com/rack", "example.com/disk"
ZONES, RACKS = ("za", "zb", "zc"), ("r1", "r2", "r3", "r4")
TAINTS = (
    ("dedicated", "x", "NoSchedule"),
    ("dedicated", "y", "NoExecute"),
    ("soft", "", "PreferNoSchedule"),
)
CONDITIONS = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
DRIVER = "csi.example.com"
LOCAL, LATE, LATE_IN_ZONE, NOW = "local", "late", "late-in-zone", "now"
MODES = (["ReadWriteOnce"], ["ReadWriteOnce", "ReadOnlyMany"], ["ReadWriteMany"])


class RandomWorld:
    """Makes the objects of a world, each kind by one method, and then pods to be judged."""

    def __init__(self, seed: int, nodes: int = 10) -> None:
        self.random = Random(seed)  # noqa: S311 - for tests
        self.names = [f"node-{index:02d}" for index in range(nodes)]
        # Claims by namespace that a judged pod may use, and those in use.
        self.claims: dict[str, list[str]] = {}

    def nodes(self) -> list[Manifest]:
        """Return the nodes with labels, taints, conditions and room."""
        return [self._node(name) for name in self.names]

    def csi_nodes(self) -> list[Manifest]:
        """Return limits on attached volumes for some of the nodes."""
        return [
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "CSINode",
                "metadata": {"name": name},
                "spec": {
                    "drivers": [
                        {
                            "name": DRIVER,
                            "nodeID": name,
                            "allocatable": {"count": self.random.choice([1, 2, 3])},
                        }
                    ]
                },
            }
            for name in self.names
            if self._chance(0.4)
        ]

    def storage_classes(self) -> list[Manifest]:
        """Return the classes."""
        zone = self.random.choice(ZONES)
        topologies = [{"matchLabelExpressions": [{"key": ZONE, "values": [zone]}]}]
        return [
            _class(LOCAL, "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
            _class(LATE, DRIVER, "WaitForFirstConsumer"),
            _class(LATE_IN_ZONE, DRIVER, "WaitForFirstConsumer", allowedTopologies=topologies),
            _class(NOW, DRIVER, "Immediate"),
        ]

    def free_volumes(self) -> list[Manifest]:
        """Return volumes that claims of the class `local` may have."""
        found = []
        for index in range(12):
            affinity = _selects(HOST, self.random.choice(self.names))
            if self._chance(0.2):
                affinity = _selects(ZONE, self.random.choice(ZONES))
            volume = self._volume(f"free-{index}", LOCAL, affinity)
            volume["metadata"]["labels"] = {"speed": self.random.choice(["fast", "slow"])}
            volume["spec"]["capacity"]["storage"] = f"{self.random.randint(1, 4)}Gi"
            volume["spec"]["accessModes"] = self.random.choice(MODES)
            if self._chance(0.15):
                volume["spec"]["volumeMode"] = "Block"
            found.append(volume)
        return found

    def bound_volumes(self) -> list[tuple[Manifest, Manifest]]:
        """Return volumes with the claims that have them."""
        found = []
        for namespace in NAMESPACES:
            for index in range(5):
                name = f"{namespace}-bound-{index}"
                volume = self._volume(name, "", self._affinity_of_volume())
                if self._chance(0.3):
                    key = self.random.choice([ZONE, OLD_ZONE])
                    zones = self.random.sample(ZONES, self.random.randint(1, 2))
                    volume["metadata"]["labels"] = {key: "__".join(zones)}
                modes = self.random.choice(MODES)
                if index == 0:
                    modes = ["ReadWriteOncePod"]
                volume["spec"]["accessModes"] = modes
                claim = self._claim(namespace, f"bound-{index}", "", modes, name)
                volume["spec"]["claimRef"] = {"namespace": namespace, "name": f"bound-{index}"}
                found.append((volume, claim))
        return found

    def unbound_claims(self) -> list[Manifest]:
        """Return claims that wait for a pod, for a provisioner, or for ever."""
        found = []
        for namespace in NAMESPACES:
            for index, named in enumerate((LOCAL, LOCAL, LATE, LATE_IN_ZONE, LATE, NOW)):
                modes = self.random.choice(MODES)
                claim = self._claim(namespace, f"open-{index}", named, modes)
                claim["spec"]["resources"]["requests"]["storage"] = f"{self.random.randint(1, 4)}Gi"
                if named == LOCAL and self._chance(0.3):
                    speed = self.random.choice(["fast", "slow"])
                    claim["spec"]["selector"] = {"matchLabels": {"speed": speed}}
                if named == LOCAL and self._chance(0.15):
                    claim["spec"]["volumeMode"] = "Block"
                if index == 4:
                    chosen = {"volume.kubernetes.io/selected-node": self.random.choice(self.names)}
                    claim["metadata"]["annotations"] = chosen
                found.append(claim)
        return found

    def pods(self) -> list[Manifest]:
        """Return pods that are on nodes."""
        found = []
        for index in range(4 * len(self.names)):
            pod = self._pod(f"there-{index}", labels=self._labels())
            pod["spec"]["nodeName"] = self.random.choice(self.names)
            pod["spec"]["tolerations"] = [{"operator": "Exists"}]
            if self._chance(0.06):
                self._repel(pod)
            if self._chance(0.15):
                self._use_claims(pod, [f"bound-{self.random.randrange(5)}"])
            if self._chance(0.1):
                self._take_port(pod)
            found.append(pod)
        return found

    def judged(self, name: str) -> Manifest:
        """Return a pod that asks for one thing or a few."""
        pod = self._pod(name, labels={"judged": "yes", **self._labels()})
        asks = [
            (self._attract, 4),
            (self._repel, 3),
            (self._spread, 6),
            (self._claim_something, 6),
            (self._tolerate, 2),
            (self._select, 1),
            (self._take_port, 1),
            (self._ask_much, 1),
        ]
        population, weights = zip(*asks, strict=True)
        if self._chance(0.8):
            pod["spec"]["tolerations"] = [{"operator": "Exists"}]
        for ask in self.random.choices(population, weights, k=self.random.choice([1, 1, 1, 2, 3])):
            ask(pod)
        return pod

    # Nodes.

    def _node(self, name: str) -> Manifest:
        labels = {HOST: name, "kubernetes.io/os": "linux"}
        if self._chance(0.9):
            labels[ZONE] = self.random.choice(ZONES)
            labels[REGION] = "here"
        if self._chance(0.2):
            labels[OLD_ZONE] = labels.get(ZONE, "za")
        if self._chance(0.8):
            labels[RACK] = self.random.choice(RACKS)
        if self._chance(0.5):
            labels[DISK] = self.random.choice(["ssd", "hdd"])
        taints = [
            {"key": key, "value": value, "effect": effect}
            for key, value, effect in TAINTS
            if self._chance(0.1)
        ]
        states = {it: "True" if self._chance(0.04) else "False" for it in CONDITIONS}
        states["Ready"] = "False" if self._chance(0.1) else "True"
        room = {
            "cpu": str(self.random.randint(2, 5)),
            "memory": f"{self.random.randint(2, 8)}Gi",
            "pods": str(self.random.randint(6, 16)),
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints, "unschedulable": self._chance(0.1)},
            "status": {
                "capacity": room,
                "allocatable": room,
                "conditions": [{"type": key, "status": states[key]} for key in states],
            },
        }

    # Storage.

    def _affinity_of_volume(self) -> Manifest | None:
        if self._chance(0.3):
            return None
        if self._chance(0.4):
            return _selects(HOST, *self.random.sample(self.names, 3))
        return _selects(ZONE, *self.random.sample(ZONES, self.random.randint(1, 2)))

    def _volume(self, name: str, storage_class: str, affinity: Manifest | None) -> Manifest:
        spec: Manifest = {
            "capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "persistentVolumeReclaimPolicy": "Retain",
            "csi": {"driver": DRIVER, "volumeHandle": name},
        }
        if affinity is not None:
            spec["nodeAffinity"] = {"required": affinity}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": spec,
        }

    def _claim(
        self, namespace: str, name: str, storage_class: str, modes: list[str], volume: str = ""
    ) -> Manifest:
        self.claims.setdefault(namespace, []).append(name)
        spec: Manifest = {
            "storageClassName": storage_class,
            "accessModes": modes,
            "resources": {"requests": {"storage": "1Gi"}},
        }
        if volume:
            spec["volumeName"] = volume
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": namespace, "name": name},
            "spec": spec,
        }

    # Pods.

    def _pod(self, name: str, *, labels: dict[str, str]) -> Manifest:
        requests = {"cpu": f"{self.random.choice([0, 50, 200])}m", "memory": "32Mi"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.random.choice(list(NAMESPACES)),
                "labels": labels,
            },
            "spec": {
                "terminationGracePeriodSeconds": 3600,
                "containers": [
                    {"name": "main", "image": "pause", "resources": {"requests": requests}}
                ],
            },
        }

    def _labels(self) -> dict[str, str]:
        labels = {"app": self.random.choice(APPS)}
        if self._chance(0.7):
            labels["tier"] = self.random.choice(TIERS)
        if self._chance(0.7):
            labels["hash"] = self.random.choice(HASHES)
        return labels

    def _selector(self) -> Manifest | None:
        kind = self.random.random()
        if kind < 0.5:
            return {"matchLabels": {"app": self.random.choice(APPS)}}
        if kind < 0.65:
            values = self.random.sample(APPS, 2)
            return {"matchExpressions": [{"key": "app", "operator": "In", "values": values}]}
        if kind < 0.8:
            operator = self.random.choice(["NotIn", "Exists", "DoesNotExist"])
            expression: Manifest = {"key": "tier", "operator": operator}
            if operator == "NotIn":
                expression["values"] = ["front"]
            return {
                "matchLabels": {"app": self.random.choice(APPS)},
                "matchExpressions": [expression],
            }
        if kind < 0.9:
            return {"matchLabels": {"tier": self.random.choice(TIERS)}}
        return {} if kind < 0.95 else None

    def _term(self) -> Manifest:
        term: Manifest = {"topologyKey": self.random.choice([ZONE, HOST, RACK, DISK])}
        selector = self._selector()
        if selector is not None:
            term["labelSelector"] = selector
        kind = self.random.random()
        if kind < 0.15:
            term["namespaces"] = self.random.sample(list(NAMESPACES), 2)
        elif kind < 0.3:
            term["namespaceSelector"] = {
                "matchLabels": {"team": self.random.choice(["sea", "land"])}
            }
        elif kind < 0.4:
            term["namespaceSelector"] = {}
        elif kind < 0.45:
            term["namespaces"] = ["grey"]
            term["namespaceSelector"] = {
                "matchExpressions": [{"key": "team", "operator": "Exists"}]
            }
        if "labelSelector" in term:
            if self._chance(0.15):
                term["matchLabelKeys"] = ["hash"]
            elif self._chance(0.15):
                term["mismatchLabelKeys"] = ["hash"]
        return term

    def _attract(self, pod: Manifest) -> None:
        terms = [self._term() for _ in range(self.random.choice([1, 1, 2]))]
        if self._chance(0.3):
            # The first of a kind that is to stay together.
            pod["metadata"]["labels"]["app"] = "new"
            terms = [
                {
                    "topologyKey": terms[0]["topologyKey"],
                    "labelSelector": {"matchLabels": {"app": "new"}},
                }
            ]
        self._affinity(pod)["podAffinity"] = {REQUIRED: terms}

    def _repel(self, pod: Manifest) -> None:
        terms = [self._term() for _ in range(self.random.choice([1, 1, 2]))]
        self._affinity(pod)["podAntiAffinity"] = {REQUIRED: terms}

    def _affinity(self, pod: Manifest) -> Manifest:
        affinity: Manifest = pod["spec"].setdefault("affinity", {})
        return affinity

    def _spread(self, pod: Manifest) -> None:
        constraints = []
        for key in self.random.sample([ZONE, HOST, RACK], self.random.choice([1, 1, 2])):
            constraint: Manifest = {
                "topologyKey": key,
                "maxSkew": self.random.choice([1, 1, 2, 3]),
                "whenUnsatisfiable": self.random.choice(["DoNotSchedule"] * 4 + ["ScheduleAnyway"]),
                "nodeAffinityPolicy": self.random.choice(["Ignore", "Ignore", "Honor"]),
                "nodeTaintsPolicy": self.random.choice(["Ignore", "Honor"]),
            }
            selector = self._selector()
            if selector is not None:
                constraint["labelSelector"] = selector
            if constraint["whenUnsatisfiable"] == "DoNotSchedule" and self._chance(0.3):
                constraint["minDomains"] = self.random.randint(1, 5)
            if selector is not None and self._chance(0.2):
                constraint["matchLabelKeys"] = ["hash"]
            constraints.append(constraint)
        pod["spec"]["topologySpreadConstraints"] = constraints

    def _claim_something(self, pod: Manifest) -> None:
        names = self.claims[pod["metadata"]["namespace"]]
        chosen = self.random.sample(names, self.random.choice([1, 1, 1, 2, 3]))
        if self._chance(0.05):
            chosen.append("missing")
        self._use_claims(pod, chosen)

    def _use_claims(self, pod: Manifest, names: list[str]) -> None:
        pod["spec"]["volumes"] = [
            {"name": f"v{index}", "persistentVolumeClaim": {"claimName": name}}
            for index, name in enumerate(names)
        ]

    def _tolerate(self, pod: Manifest) -> None:
        choices = [
            {"key": "dedicated", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
            {"key": "dedicated", "operator": "Exists"},
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"},
            {"operator": "Exists", "effect": "NoSchedule"},
        ]
        pod["spec"]["tolerations"] = self.random.sample(choices, self.random.randint(0, 3))

    def _select(self, pod: Manifest) -> None:
        if self._chance(0.5):
            pod["spec"]["nodeSelector"] = {ZONE: self.random.choice(ZONES)}
            return
        expressions = [
            {"key": RACK, "operator": "In", "values": self.random.sample(RACKS, 2)},
            {"key": DISK, "operator": self.random.choice(["Exists", "DoesNotExist"])},
        ]
        term = {"matchExpressions": self.random.sample(expressions, self.random.choice([1, 2]))}
        self._affinity(pod)["nodeAffinity"] = {REQUIRED: {"nodeSelectorTerms": [term]}}

    def _take_port(self, pod: Manifest) -> None:
        port = self.random.choice([8080, 8081])
        pod["spec"]["containers"][0]["ports"] = [{"containerPort": port, "hostPort": port}]

    def _ask_much(self, pod: Manifest) -> None:
        requests = {"cpu": str(self.random.randint(1, 3)), "memory": "1Gi"}
        pod["spec"]["containers"][0]["resources"] = {"requests": requests}

    def _chance(self, share: float) -> bool:
        return self.random.random() < share


def _class(name: str, provisioner: str, mode: str, **more: Any) -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": provisioner,
        "volumeBindingMode": mode,
        **more,
    }


def _selects(key: str, *values: str) -> Manifest:
    expression = {"key": key, "operator": "In", "values": list(values)}
    return {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
