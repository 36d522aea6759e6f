"""Objects as a grown cluster has them: with owners, tolerations, mounts, statuses and managedFields.

A pod here is 5 to 8 KB of JSON, like one that a Deployment's controller, an injector of volumes, a
kubelet and a network plugin have all written to. Everything follows from a number, so nothing of a
big cluster needs to be stored. Each workload of `PODS_PER_WORKLOAD` pods has names, labels and an
owner of its own.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

Json = dict[str, Any]

PODS_PER_WORKLOAD = 10
NAMESPACES = 500
SINCE = "2026-03-02T08:15:00Z"
RATIOS = {"512": "15", "1k": "10", "4k": "6", "8k": "4", "16k": "2", "32k": "1"}
MIB = 2**20
GATE = "berthmaster.io/placement"
REQUEST = "blockio.kubernetes.io/resources"
ALLOCATION = "berthmaster.io/allocation"
DRIVERS = "ioi-system"


def node_name(index: int) -> str:
    """Return the name of a node as clouds make them."""
    return (
        f"ip-10-{index // 65536}-{index // 256 % 256}-{index % 256}.eu-central-1.compute.internal"
    )


def stable_uid(kind: str, index: int) -> str:
    """Return the same uid for the same thing."""
    return str(uuid.UUID(int=(_salt(kind) << 64 | index) % 2**128, version=4))


@cache
def _salt(kind: str) -> int:
    return hash_text(kind)


def hash_text(text: str) -> int:
    """Return a number of 62 bits that does not change from run to run."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value >> 2


class Template:
    """JSON text with `%(name)s` in it; filling it in is some hundred times quicker than encoding."""

    def __init__(self, obj: Json) -> None:
        self._text = json.dumps(obj, separators=(",", ":"))

    def fill(self, values: Mapping[str, object]) -> bytes:
        """Return the text with everything filled in; the values must need no escaping."""
        return (self._text % values).encode()


def _managed_fields(manager: str, fields: Json, subresource: str = "") -> Json:
    entry: Json = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": SINCE,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {**entry, "subresource": subresource} if subresource else entry


def _container_fields(name: str) -> Json:
    return {
        f'k:{{"name":"{name}"}}': {
            ".": {},
            "f:env": {
                ".": {},
                **{f'k:{{"name":"{key}"}}': {".": {}, "f:name": {}, "f:value": {}} for key in _ENV},
            },
            "f:image": {},
            "f:imagePullPolicy": {},
            "f:livenessProbe": {
                ".": {},
                "f:failureThreshold": {},
                "f:httpGet": {".": {}, "f:path": {}, "f:port": {}, "f:scheme": {}},
                "f:periodSeconds": {},
                "f:successThreshold": {},
                "f:timeoutSeconds": {},
            },
            "f:name": {},
            "f:ports": {
                ".": {},
                'k:{"containerPort":8080,"protocol":"TCP"}': {
                    ".": {},
                    "f:containerPort": {},
                    "f:name": {},
                    "f:protocol": {},
                },
            },
            "f:resources": {
                ".": {},
                "f:limits": {".": {}, "f:memory": {}},
                "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}},
            },
            "f:terminationMessagePath": {},
            "f:terminationMessagePolicy": {},
        }
    }


_ENV = ("LOG_LEVEL", "DATABASE_HOST")


def _container(name: str) -> Json:
    return {
        "name": name,
        "image": "registry.example.com/%(namespace)s/%(workload)s:v1.%(owner)s",
        "env": [{"name": key, "value": f"{key.lower()}-of-%(workload)s"} for key in _ENV],
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "resources": {
            "limits": {"memory": "%(memory)sMi"},
            "requests": {"cpu": "%(cpu)sm", "memory": "%(memory)sMi"},
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"},
            "timeoutSeconds": 1,
            "periodSeconds": 10,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/%(workload)s"},
            {
                "name": "kube-api-access-x7k2p",
                "readOnly": True,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            },
        ],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }


def _spec(containers: tuple[str, ...]) -> Json:
    return {
        "volumes": [
            {"name": "config", "configMap": {"name": "%(workload)s", "defaultMode": 420}},
            {
                "name": "kube-api-access-x7k2p",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {
                            "configMap": {
                                "name": "kube-root-ca.crt",
                                "items": [{"key": "ca.crt", "path": "ca.crt"}],
                            }
                        },
                    ],
                    "defaultMode": 420,
                },
            },
        ],
        "containers": [_container(name) for name in containers],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "%(workload)s",
        "serviceAccount": "%(workload)s",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{key}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }
            for key in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    }


def _metadata(containers: tuple[str, ...], annotations: Json) -> Json:
    labels = {
        "app.kubernetes.io/name": "%(workload)s",
        "app.kubernetes.io/version": "v1.%(owner)s",
        "pod-template-hash": "%(hash)s",
        "team": "team-%(team)s",
    }
    fields = {
        "f:metadata": {
            "f:annotations": {".": {}, **{f"f:{key}": {} for key in annotations}},
            "f:generateName": {},
            "f:labels": {".": {}, **{f"f:{key}": {} for key in labels}},
            "f:ownerReferences": {".": {}, 'k:{"uid":"%(owner_uid)s"}': {}},
        },
        "f:spec": {
            "f:containers": {
                key: it for name in containers for key, it in _container_fields(name).items()
            },
            "f:dnsPolicy": {},
            "f:enableServiceLinks": {},
            "f:restartPolicy": {},
            "f:schedulerName": {},
            "f:securityContext": {},
            "f:serviceAccount": {},
            "f:serviceAccountName": {},
            "f:terminationGracePeriodSeconds": {},
            "f:volumes": {
                ".": {},
                'k:{"name":"config"}': {
                    ".": {},
                    "f:configMap": {".": {}, "f:name": {}},
                    "f:name": {},
                },
            },
        },
    }
    return {
        "generateName": "%(workload)s-%(hash)s-",
        "namespace": "%(namespace)s",
        "creationTimestamp": SINCE,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "%(workload)s-%(hash)s",
                "uid": "%(owner_uid)s",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
        "managedFields": [_managed_fields("kube-controller-manager", fields)],
    }


def _condition(kind: str) -> Json:
    return {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": SINCE}


def _status(containers: tuple[str, ...]) -> Json:
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return {
        "phase": "Running",
        "conditions": [_condition(kind) for kind in kinds],
        "hostIP": "10.0.%(b)s.%(c)s",
        "hostIPs": [{"ip": "10.0.%(b)s.%(c)s"}],
        "podIP": "10.128.%(b)s.%(c)s",
        "podIPs": [{"ip": "10.128.%(b)s.%(c)s"}],
        "startTime": SINCE,
        "containerStatuses": [
            {
                "name": name,
                "state": {"running": {"startedAt": SINCE}},
                "lastState": {},
                "ready": True,
                "restartCount": 0,
                "image": "registry.example.com/%(namespace)s/%(workload)s:v1.%(owner)s",
                "imageID": "registry.example.com/%(workload)s@sha256:" + "4d" * 32,
                "containerID": "containerd://" + "9c" * 32,
                "started": True,
                "allocatedResources": {"cpu": "%(cpu)sm", "memory": "%(memory)sMi"},
                "resources": {"requests": {"cpu": "%(cpu)sm", "memory": "%(memory)sMi"}},
            }
            for name in containers
        ],
        "qosClass": "Burstable",
    }


def _running(containers: tuple[str, ...], annotations: Json) -> Template:
    metadata = {
        **_metadata(containers, annotations),
        "name": "%(name)s",
        "uid": "%(uid)s",
        "resourceVersion": "%(version)s",
        "generation": 1,
    }
    status_fields: Json = {
        "f:status": {
            "f:conditions": {
                f'k:{{"type":"{kind}"}}': {
                    ".": {},
                    "f:lastProbeTime": {},
                    "f:lastTransitionTime": {},
                    "f:status": {},
                    "f:type": {},
                }
                for kind in ("ContainersReady", "Initialized", "Ready")
            },
            "f:containerStatuses": {},
            "f:hostIP": {},
            "f:phase": {},
            "f:podIP": {},
            "f:podIPs": {".": {}, 'k:{"ip":"10.128.%(b)s.%(c)s"}': {".": {}, "f:ip": {}}},
            "f:startTime": {},
        }
    }
    metadata["managedFields"].append(_managed_fields("kubelet", status_fields, "status"))
    return Template(
        {
            "metadata": metadata,
            "spec": {**_spec(containers), "nodeName": "%(node)s"},
            "status": _status(containers),
        }
    )


_PLAIN: Json = {
    "kubectl.kubernetes.io/restartedAt": SINCE,
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "8080",
}
_ASKING: Json = {
    **_PLAIN,
    REQUEST: r"""{"rbps": "%(rate)sMi", "wbps": "%(rate)sMi", "blocksize": "32k"}""",
    "berthmaster.io/placement": "required",
}
_PLACED: Json = {
    **_ASKING,
    ALLOCATION: json.dumps(
        {
            "v": 1,
            "id": "%(decision)s",
            "node": "%(node)s",
            "allocated": {"diskio": {"rbps": "%(bytes)s", "wbps": "%(bytes)s", "blockSize": "32k"}},
            "scores": {"diskio": 71.4286, "resources": 40.0},
            "score": 71.4286,
            "feasible": 4981,
            "refused": [{"reason": "disk IO read bandwidth is not enough", "count": 19}],
            "runnersUp": [{"node": node_name(index), "score": 71.0} for index in (7, 8, 9)],
        }
    )
    # Numbers, not text, once they are filled in.
    .replace('"%(bytes)s"', "%(bytes)s"),
}
_RUNNING = (
    _running(("main",), _PLAIN),
    _running(("main", "proxy"), _PLAIN),
    _running(("main",), _PLACED),
    _running(("main",), _PLAIN),
)


def workload_values(owner: int) -> Json:
    """Return what all pods of a workload share."""
    return {
        "owner": owner,
        "workload": f"{('orders', 'search', 'billing', 'mail', 'media')[owner % 5]}-{owner}",
        "hash": f"{hash_text(f'rs-{owner}') % 16**9:09x}",
        "namespace": f"team-{owner % NAMESPACES}",
        "team": owner % 60,
        "owner_uid": stable_uid("owner", owner),
        "cpu": 50 + owner % 40 * 5,
        "memory": 64 + owner % 32 * 16,
        "rate": 1 + owner % 5,
        "bytes": (1 + owner % 5) * MIB,
    }


def running_pod(index: int, nodes: int) -> bytes:
    """Return pod number `index`, which runs on node `index % nodes`."""
    owner = index // PODS_PER_WORKLOAD
    values = workload_values(owner)
    values |= {
        "name": f"{values['workload']}-{values['hash']}-{index % PODS_PER_WORKLOAD}",
        "uid": stable_uid("pod", index),
        "version": 1_000_000 + index,
        "node": node_name(index % nodes),
        "b": index // 254 % 256,
        "c": index % 254,
        "decision": f"{index:012x}",
    }
    return _RUNNING[owner % len(_RUNNING)].fill(values)


def node(index: int) -> Json:
    """Return a Node with what clouds, kubelets and discovery write on one: 9 KB."""
    name = node_name(index)
    zone = f"eu-central-1{'abc'[index % 3]}"
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/region": "eu-central-1",
        "topology.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": f"m6i.{4 << index % 3}xlarge",
        "example.com/rack": f"rack-{index // 40}",
        **{f"feature.node.kubernetes.io/cpu-cpuid.{flag}": "true" for flag in _CPU_FLAGS},
    }
    amounts = {"cpu": "64", "memory": "263856084Ki", "ephemeral-storage": "1932Gi", "pods": "110"}
    conditions = [
        {
            "type": kind,
            "status": "True" if kind == "Ready" else "False",
            "lastHeartbeatTime": SINCE,
            "lastTransitionTime": SINCE,
            "reason": f"Kubelet{kind}",
            "message": f"kubelet says {kind}",
        }
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
    ]
    fields: Json = {"f:metadata": {"f:labels": {f"f:{key}": {} for key in labels}}}
    return {
        "metadata": {
            "name": name,
            "uid": stable_uid("node", index),
            "resourceVersion": str(100_000 + index),
            "creationTimestamp": SINCE,
            "labels": labels,
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
            "managedFields": [_managed_fields("kubelet", fields)],
        },
        "spec": {
            "podCIDR": f"10.{index // 256}.{index % 256}.0/24",
            "providerID": f"aws:///{zone}",
        },
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": f"10.0.{index // 256}.{index % 256}"}],
            "images": [
                {
                    "names": [f"registry.example.com/image-{it}@sha256:{'3b' * 32}"],
                    "sizeBytes": 10**8 + it,
                }
                for it in range(40)
            ],
            "nodeInfo": {"kubeletVersion": "v1.36.3", "osImage": "Linux", "architecture": "amd64"},
        },
    }


_CPU_FLAGS = (
    *("ADX", "AESNI", "AVX", "AVX2", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512F", "AVX512VL"),
    *("CMPXCHG8", "FMA3", "FXSR", "GFNI", "IBPB", "LAHF", "MOVBE", "OSXSAVE", "SHA", "STIBP"),
    *("SYSCALL", "VAES", "VPCLMULQDQ", "X87", "XGETBV1", "XSAVE"),
)


def inventory(index: int, reported: list[str]) -> Json:
    """Return a NodeInventory: the node's disk with its model, its report, and the pods it counts."""
    speed = disk_speed_mib(index)
    used = 2 * len(reported)
    share = {"read": f"{speed}Mi", "write": f"{speed}Mi", "total": f"{2 * speed}Mi"}
    free = {
        "read": f"{speed - used}Mi",
        "write": f"{speed - used}Mi",
        "total": f"{2 * (speed - used)}Mi",
    }
    source = {"deviceGeneration": 1, "statsGeneration": 7, "observedGeneration": 7}
    return {
        "metadata": {
            "name": node_name(index),
            "uid": stable_uid("inventory", index),
            "resourceVersion": str(200_000 + index),
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "name": node_name(index),
                    "uid": stable_uid("node", index),
                }
            ],
        },
        "status": {
            "sources": {"diskio": source},
            "disks": [
                {
                    "id": "nvme0n1",
                    "type": "emptyDir",
                    "vendor": "Intel",
                    "model": f"P45{index % 4}0",
                    "capacity": share,
                    "allocable": free,
                    "reportedPods": reported,
                    "function": {"readRatio": RATIOS, "writeRatio": RATIOS},
                }
            ],
            "conditions": [
                {
                    "type": "DiskIOReady",
                    "status": "True",
                    "reason": "Reported",
                    "message": "the driver reports",
                    "lastTransitionTime": SINCE,
                }
            ],
            "freeDisk": "97%",
        },
    }


def namespace(index: int) -> Json:
    """Return a Namespace."""
    name = f"team-{index}"
    labels = {"kubernetes.io/metadata.name": name, "team": f"team-{index % 60}"}
    return {
        "metadata": {
            "name": name,
            "uid": stable_uid("namespace", index),
            "resourceVersion": str(300_000 + index),
            "labels": labels,
        },
        "status": {"phase": "Active"},
    }


def _new_pod(containers: tuple[str, ...]) -> Json:
    spec = {**_spec(containers), "schedulingGates": [{"name": GATE}]}
    return {"metadata": _metadata(containers, _ASKING), "spec": spec, "status": {}}


def _review(containers: tuple[str, ...]) -> Template:
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    account = "system:serviceaccount:kube-system:replicaset-controller"
    groups = ["serviceaccounts", "serviceaccounts:kube-system", "authenticated"]
    return Template(
        {
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "%(request)s",
                "kind": kind,
                "resource": resource,
                "requestKind": kind,
                "requestResource": resource,
                "namespace": "%(namespace)s",
                "operation": "CREATE",
                "userInfo": {
                    "username": account,
                    "uid": stable_uid("account", 1),
                    "groups": [f"system:{it}" for it in groups],
                    "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1b0e"]},
                },
                "object": {"kind": "Pod", "apiVersion": "v1", **_new_pod(containers)},
                "oldObject": None,
                "dryRun": False,
                "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            },
        }
    )


def _stages(containers: tuple[str, ...]) -> tuple[Template, ...]:
    """Return a placed pod's life: created, bound, started, running."""
    pod = _new_pod(containers)
    named = {"name": "%(name)s", "uid": "%(uid)s", "resourceVersion": "%(version)s"}
    pod["metadata"] |= named
    # Given already escaped.
    pod["metadata"]["annotations"] = {**_ASKING, ALLOCATION: "%(allocation)s"}
    pin = {"key": "metadata.name", "operator": "In", "values": ["%(node)s"]}
    terms = {"nodeSelectorTerms": [{"matchFields": [pin]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    spec = {**_spec(containers), "affinity": {"nodeAffinity": required}}
    bound = {**spec, "nodeName": "%(node)s"}
    scheduled = {"phase": "Pending", "conditions": [_condition("PodScheduled")]}
    started = {**scheduled, "hostIP": "10.0.0.1", "startTime": SINCE}
    running = json.loads(
        json.dumps(_status(containers)).replace("%(b)s", "7").replace("%(c)s", "7")
    )
    return tuple(
        Template({"metadata": pod["metadata"], "spec": its_spec, "status": status})
        for its_spec, status in (
            (spec, {"phase": "Pending", "qosClass": "Burstable"}),
            (bound, scheduled),
            (bound, started),
            (bound, running),
        )
    )


_SHAPES = (("main",), ("main", "proxy"))
_REVIEWS = tuple(map(_review, _SHAPES))
_LIVES = tuple(map(_stages, _SHAPES))
# Above all owners of running pods.
_FIRST_CREATED_OWNER = 1_000_000


@dataclass(frozen=True, slots=True)
class NewPod:
    """A pod that a workload's controller creates; pods of one workload and `cpu` have one shape."""

    number: int
    workload: int
    cpu_millicores: int

    def review(self) -> bytes:
        """Return the AdmissionReview of its creation."""
        values = self._values() | {"request": stable_uid("request", self.number)}
        return _REVIEWS[self.workload % len(_REVIEWS)].fill(values)

    def stage(self, stage: int, *, version: int, node: str, allocation: str) -> bytes:
        """Return it as stored once it was placed: 0 created, 1 bound, 2 started, 3 running."""
        values = self._values()
        values |= {
            "name": f"{values['workload']}-{values['hash']}-{self.number:06x}",
            "uid": stable_uid("created", self.number),
            "version": version,
            "node": node,
            "allocation": json.dumps(allocation)[1:-1],
        }
        return _LIVES[self.workload % len(_LIVES)][stage].fill(values)

    def _values(self) -> Json:
        values = workload_values(_FIRST_CREATED_OWNER + self.workload)
        return values | {"cpu": self.cpu_millicores}


def disk_speed_mib(index: int) -> int:
    """Return how many MiB/s a node's disk reads, and writes."""
    return 2000 + hash_text(f"disk-{index}") % 6000


def disk_device(index: int) -> Json:
    """Return a NodeDiskDevice as an IO driver publishes it."""
    speed = disk_speed_mib(index)
    return {
        "apiVersion": "diskio.x-k8s.io/v1alpha1",
        "kind": "NodeDiskDevice",
        "metadata": {
            "name": f"{node_name(index)}-nodediskdevice",
            "namespace": DRIVERS,
            "uid": stable_uid("device", index),
        },
        "spec": {
            "nodeName": node_name(index),
            "devices": {
                "nvme0n1": {
                    "name": "nvme0n1",
                    "vendor": "Intel",
                    "model": f"P45{index % 4}0",
                    "type": "emptyDir",
                    "capacity": {
                        "read": f"{speed}Mi",
                        "write": f"{speed}Mi",
                        "total": f"{2 * speed}Mi",
                    },
                }
            },
        },
    }


def disk_models() -> str:
    """Return the text of the ConfigMap that holds the disks' models."""
    return json.dumps(
        [
            {"vendor": "Intel", "model": f"P45{it}0", "readRatio": RATIOS, "writeRatio": RATIOS}
            for it in range(4)
        ]
    )
