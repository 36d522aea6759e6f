from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from berthmaster.api import names
from berthmaster.cluster.errors import ApiError, UnreachableError
from berthmaster_operator import certificates
from berthmaster_operator.certifying import CONFIGURATION, KEY, CertificateReconciler
from berthmaster_operator.metrics import Metrics
from operator_program.stores import FakeStore

SECRETS = "/api/v1/namespaces/ns/secrets"
CA = f"{SECRETS}/{names.WEBHOOK_CA_SECRET}"
TLS = f"{SECRETS}/{names.WEBHOOK_TLS_SECRET}"


class Scene:
    def __init__(self) -> None:
        self.store = FakeStore()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.is_leader = True
        self.reconciler = CertificateReconciler(
            self.store,
            "ns",
            may_write=lambda: self.is_leader,
            metrics=Metrics(),
            clock=lambda: self.now.timestamp(),
            wall_clock=lambda: self.now,
        )

    def install(self) -> None:
        hooks = [{"name": names.WEBHOOK_NAME, "clientConfig": {"service": {"name": "s"}}}]
        self.store.put(CONFIGURATION, {"webhooks": hooks})

    async def run(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    @property
    def bundle(self) -> bytes:
        config: dict[str, Any] = self.store.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]
        return base64.b64decode(config.get("caBundle", ""))

    def part(self, path: str, key: str) -> bytes:
        return base64.b64decode(self.store.objects[path]["data"][key])


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.install()
    return made


async def test_first_run_makes_everything_in_order(scene: Scene) -> None:
    again_s = await scene.run()

    assert again_s == 600
    assert [path for _, path in scene.store.writes] == [
        SECRETS + CA[len(SECRETS) :],
        CONFIGURATION,
        TLS,
    ]
    assert scene.bundle == scene.part(CA, "tls.crt") == scene.part(TLS, "ca.crt")
    assert scene.store.objects[TLS]["type"] == "kubernetes.io/tls"
    assert scene.store.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["service"]


async def test_second_run_writes_nothing(scene: Scene) -> None:
    await scene.run()
    writes = len(scene.store.writes)

    await scene.run()

    assert len(scene.store.writes) == writes


async def test_bystander_does_nothing(scene: Scene) -> None:
    scene.is_leader = False

    assert await scene.run() is None

    assert scene.store.writes == []


async def test_leaf_is_renewed_under_the_same_authority(scene: Scene) -> None:
    await scene.run()
    before, bundle = scene.part(TLS, "tls.crt"), scene.bundle

    scene.now += timedelta(days=61)
    await scene.run()

    assert scene.part(TLS, "tls.crt") != before
    assert scene.bundle == bundle


async def test_new_authority_waits_until_it_is_trusted(scene: Scene) -> None:
    await scene.run()
    old_leaf, old_authority = scene.part(TLS, "tls.crt"), scene.part(CA, "tls.crt")
    scene.now += timedelta(days=2500)

    again_s = await scene.run()

    assert again_s == pytest.approx(10)
    assert scene.part(TLS, "tls.crt") == old_leaf
    assert certificates.is_trusted(scene.bundle, old_authority)
    assert certificates.is_trusted(scene.bundle, scene.part(CA, "tls.crt"))
    scene.now += timedelta(seconds=10)
    await scene.run()
    assert scene.part(TLS, "tls.crt") != old_leaf
    assert certificates.is_trusted(scene.part(TLS, "ca.crt"), old_authority)


async def test_wiped_bundle_is_put_back(scene: Scene) -> None:
    await scene.run()
    bundle = scene.bundle
    scene.install()

    await scene.run()

    assert scene.bundle == bundle


async def test_bundle_follows_a_late_installation() -> None:
    scene = Scene()
    await scene.run()
    assert TLS in scene.store.objects
    scene.install()

    await scene.run()

    assert scene.bundle == scene.part(CA, "ca.crt")


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
async def test_broken_secret_is_replaced(scene: Scene, key: str) -> None:
    await scene.run()
    scene.store.objects[TLS]["data"][key] = "AAAA"

    await scene.run()

    pair = certificates.Pair(certificate=scene.part(TLS, "tls.crt"), key=scene.part(TLS, "tls.key"))
    authority = certificates.Pair(
        certificate=scene.part(CA, "tls.crt"), key=scene.part(CA, "tls.key")
    )
    dns_names = certificates.service_names(names.WEBHOOK_SERVICE, "ns")
    assert certificates.find_leaf_fault(pair, authority, dns_names, scene.now) == ""


async def test_refusals_are_passed_on(scene: Scene) -> None:
    scene.store.fail_next = [UnreachableError("down")]

    with pytest.raises(UnreachableError):
        await scene.run()

    scene.store.fail_next = [ApiError(403, "Forbidden", "no")]
    with pytest.raises(ApiError, match="Forbidden"):
        await scene.run()


async def test_keys_are_not_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    await scene.run()

    secret = scene.part(CA, "tls.key").decode().splitlines()[1]
    assert secret not in " ".join(str(vars(record)) for record in caplog.records)
