"""Reading the programs' metrics as Prometheus does: over TLS, with a token that may."""

from __future__ import annotations

import aiohttp

from berthmaster.cluster.client import ApiError, Client

READER = "scraper"
METRICS_PORT = 8443


async def make_reader(client: Client) -> str:
    """Return a token that the role for readers of metrics is bound to, good for a day."""
    account = {"metadata": {"name": READER}}
    binding = {
        "metadata": {"name": f"berthmaster-{READER}"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "berthmaster-metrics-reader",
        },
        "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": "default"}],
    }
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    for path, manifest in ((accounts, account), (bindings, binding)):
        try:
            await client.create(path, manifest)
        except ApiError as error:
            if not error.is_already_exists:
                raise
    made = await client.create(f"{accounts}/{READER}/token", {"spec": {"expirationSeconds": 86400}})
    token: str = made["status"]["token"]
    return token


async def read_metrics(
    session: aiohttp.ClientSession, host: str, token: str, *, port: int = METRICS_PORT
) -> str:
    """Return a page of metrics. Raises aiohttp.ClientError."""
    # Whose certificate it is, is not what is looked at here.
    async with session.get(
        f"https://{host}:{port}/metrics",
        headers={"Authorization": f"Bearer {token}"},
        ssl=False,
    ) as response:
        response.raise_for_status()
        return await response.text()
