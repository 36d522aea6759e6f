"""What our two service accounts must be allowed to do; the same as the roles in `config/base/rbac`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from berthmaster.api import names
from berthmaster.cli.doctor.facts import Facts, Right, Unread
from berthmaster.cli.doctor.findings import Finding, Part, some

PART = Part("rights")
_SYSTEM = names.SYSTEM_NAMESPACE
_WEBHOOK, _OPERATOR = names.WEBHOOK_SERVICE_ACCOUNT, names.OPERATOR_SERVICE_ACCOUNT
_ADMISSION = "admissionregistration.k8s.io"
_HOOKS = "mutatingwebhookconfigurations"
_LEASES = "coordination.k8s.io"


def _rights(
    account: str,
    verbs: str,
    group: str,
    resources: str,
    namespace: str = "",
    *,
    named: str = "",
) -> tuple[Right, ...]:
    return tuple(
        Right(account, verb, group, resource, namespace, name)
        for verb in verbs.split()
        for resource in resources.split()
        for name in named.split() or ("",)
    )


RIGHTS: tuple[Right, ...] = (
    *(
        right
        for account in (_WEBHOOK, _OPERATOR)
        for right in (
            *_rights(account, "create", "authentication.k8s.io", "tokenreviews"),
            *_rights(account, "create", "authorization.k8s.io", "subjectaccessreviews"),
        )
    ),
    *_rights(_WEBHOOK, "get list watch patch", "", "pods"),
    *_rights(_WEBHOOK, "patch", "", "pods/status"),
    *_rights(_WEBHOOK, "create", "", "pods/eviction"),
    *_rights(_WEBHOOK, "list watch", "", "nodes namespaces"),
    *_rights(_WEBHOOK, "list watch", "", "persistentvolumeclaims persistentvolumes"),
    *_rights(_WEBHOOK, "list watch", "storage.k8s.io", "storageclasses csinodes"),
    *_rights(_WEBHOOK, "list watch", "apps", "replicasets"),
    *_rights(_WEBHOOK, "list watch", names.GROUP, "nodeinventories placementpolicies"),
    *(
        right
        for group in names.DATASHIM_GROUPS
        for right in _rights(
            _WEBHOOK, "list watch", group, f"{names.DATASETS} {names.DATASETS_INTERNAL}"
        )
    ),
    *_rights(_WEBHOOK, "get patch", _ADMISSION, _HOOKS, named=names.WEBHOOK_CONFIGURATION),
    *_rights(_WEBHOOK, "create patch", "events.k8s.io", "events"),
    *_rights(_WEBHOOK, "create", _LEASES, "leases", _SYSTEM),
    *_rights(_WEBHOOK, "get update", _LEASES, "leases", _SYSTEM, named=names.WEBHOOK_LEASE),
    *_rights(_WEBHOOK, "list watch", "", "secrets", _SYSTEM, named=names.WEBHOOK_TLS_SECRET),
    *_rights(_OPERATOR, "list watch", "", "pods nodes"),
    *_rights(_OPERATOR, "get", "", "nodes"),
    *_rights(_OPERATOR, "patch", "", "nodes/status"),
    *_rights(_OPERATOR, "list watch delete", names.DISKIO_GROUP, "nodediskdevices"),
    *_rights(
        _OPERATOR, "get list watch create patch delete", names.DISKIO_GROUP, "nodediskiostats"
    ),
    *_rights(_OPERATOR, "list watch", names.TOPOLOGY_GROUP, "noderesourcetopologies"),
    *(
        right
        for group in names.DATASHIM_GROUPS
        for right in _rights(
            _OPERATOR, "list watch", group, f"{names.DATASETS} {names.DATASETS_INTERNAL}"
        )
    ),
    *_rights(_OPERATOR, "list watch", names.WAO_GROUPS[0], "nodeconfigs nodeconfigtemplates"),
    *_rights(_OPERATOR, "list watch", names.WAO_GROUPS[1], "nodeconfigs nodeconfigtemplates"),
    *_rights(_OPERATOR, "list", "metrics.k8s.io", "nodes"),
    *_rights(_OPERATOR, "get", "metrics.k8s.io", "pods"),
    *_rights(_OPERATOR, "list watch", names.GROUP, "powermodels"),
    *_rights(_OPERATOR, "get list watch create", names.GROUP, "nodeinventories"),
    *_rights(_OPERATOR, "patch", names.GROUP, "nodeinventories/status"),
    *_rights(_OPERATOR, "get list watch create patch", names.GROUP, "nodexpus"),
    *_rights(_OPERATOR, "patch", names.GROUP, "nodexpus/status"),
    *_rights(_OPERATOR, "get list watch", names.GROUP, "placementpolicies"),
    *_rights(_OPERATOR, "create patch delete", _ADMISSION, "mutatingadmissionpolicybindings"),
    *_rights(
        _OPERATOR, "get list watch patch", _ADMISSION, _HOOKS, named=names.WEBHOOK_CONFIGURATION
    ),
    *_rights(_OPERATOR, "list watch", "apiextensions.k8s.io", "customresourcedefinitions"),
    *_rights(_OPERATOR, "create patch", "events.k8s.io", "events"),
    *_rights(_OPERATOR, "create", _LEASES, "leases", _SYSTEM),
    *_rights(_OPERATOR, "get update", _LEASES, "leases", _SYSTEM, named=names.OPERATOR_LEASE),
    *_rights(_OPERATOR, "create", "", "secrets", _SYSTEM),
    *_rights(
        _OPERATOR,
        "get list watch update",
        "",
        "secrets",
        _SYSTEM,
        named=f"{names.WEBHOOK_CA_SECRET} {names.WEBHOOK_TLS_SECRET}",
    ),
    *_rights(
        _OPERATOR,
        "list watch",
        "",
        "configmaps",
        names.DISKIO_NAMESPACE,
        named=names.DISK_MODELS_CONFIG_MAP,
    ),
    *_rights(_OPERATOR, "list watch", "", "configmaps", names.UNHEALTHY_XPUS_NAMESPACE),
)
WAY_OUT = "kubectl apply -k config/base/rbac   # of the version that is installed"


def check(facts: Facts) -> Iterator[Finding]:
    """Look at what each account was found to be allowed."""
    missing: dict[str, list[str]] = defaultdict(list)
    allowed: dict[str, int] = defaultdict(int)
    unread = ""
    for right, answer in facts.rights.items():
        if isinstance(answer, Unread):
            unread = unread or answer.why
        elif answer:
            allowed[right.account] += 1
        else:
            missing[right.account].append(str(right))
    for account, lacking in missing.items():
        yield PART.broken(f"the service account {account} may not {some(lacking)}", WAY_OUT)
    if unread:
        yield PART.not_checked("what our service accounts may do", unread)
    for account, count in allowed.items():
        if account not in missing and not unread:
            yield PART.ok(f"{account} may do all {count} things that it has to")
