from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from berthmaster.api import names
from berthmaster.api.digests import certificate_digest
from berthmaster.cluster.client import JsonObject
from berthmaster.cluster.errors import ApiError, UnreachableError
from berthmaster_operator import certificates
from berthmaster_operator.certificates import Pair
from berthmaster_operator.certifying import (
    CONFIGURATION,
    KEY,
    CertificateReconciler,
    webhook_names,
)
from berthmaster_operator.metrics import Metrics
from berthmaster_operator.rotation import PROPAGATION_S
from operator_program.stores import FakeStore

PODS = "/api/v1/namespaces/ns/pods"
SECRETS = "/api/v1/namespaces/ns/secrets"
CA = f"{SECRETS}/{names.WEBHOOK_CA_SECRET}"
TLS = f"{SECRETS}/{names.WEBHOOK_TLS_SECRET}"
ISSUED = f"{SECRETS}/{names.ISSUED_SECRET}"
DNS_NAMES = webhook_names("ns")


class DeathError(Exception):
    """The operator's process ended here."""


class JudgedStore(FakeStore):
    """Also looks at each write as an API server and a webhook would: is what is served trusted?"""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.dies_after: int | None = None

    def put(self, path: str, obj: JsonObject) -> JsonObject:
        stored = super().put(path, obj)
        self.scene.judge(path)
        return stored

    async def get(self, path: str, *args: Any, **options: Any) -> JsonObject:
        found = await super().get(path, *args, **options)
        if self.dies_after is not None and len(self.writes) >= self.dies_after:
            raise DeathError
        return found


class Scene:
    """Objects, clocks and replicas; `restart` makes a new process of the operator."""

    def __init__(self, *, is_foreign: bool = False) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.is_leader = True
        self.metrics = Metrics()
        self.serving: dict[str, bytes] = {}
        # When each bundle came into the configuration, newest last; a wiped one counts, too.
        self.history: list[tuple[datetime, bytes]] = []
        self.faults: list[str] = []
        self.is_foreign = is_foreign
        self.store = JudgedStore(self)
        self.restart()

    def restart(self) -> None:
        self.store.dies_after = None
        self.reconciler = CertificateReconciler(
            self.store,
            "ns",
            may_write=lambda: self.is_leader,
            metrics=self.metrics,
            is_foreign=self.is_foreign,
            clock=lambda: self.now.timestamp(),
            wall_clock=lambda: self.now,
        )
        self.show_replicas()

    def install(self) -> None:
        hooks = [{"name": names.WEBHOOK_NAME, "clientConfig": {"service": {"name": "s"}}}]
        self.store.put(CONFIGURATION, {"webhooks": hooks})

    async def run(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    # The replicas.

    def show_replicas(self) -> None:
        self.store.objects[PODS] = {
            "items": [
                {
                    "metadata": {
                        "name": name,
                        "annotations": {names.SERVING: certificate_digest(served)},
                    }
                }
                for name, served in self.serving.items()
            ]
        }

    def follow(self, *replicas: str) -> None:
        """Let replicas serve what the Secret has now, and say so."""
        for name in replicas:
            self.serving[name] = self.part(TLS, "tls.crt")
        self.show_replicas()

    def judge(self, path: str) -> None:
        """Note whatever is served or about to be served and not trusted by an API server."""
        if path == CONFIGURATION:
            self.history.append((self.now, self.bundle))
        if path == TLS:
            # A replica may serve it from this moment on.
            self._judge(self.part(TLS, "tls.crt"))
        for served in self.serving.values():
            self._judge(served)

    def _judge(self, served: bytes) -> None:
        if not self.serving:
            return
        seen = [text for at, text in self.history if at <= self.now - timedelta(seconds=5)]
        # Some API server still goes by the last bundle of a few seconds ago, another by the newest.
        for text in (*seen[-1:], self.bundle):
            if text and not is_signed_by(served, text):
                self.faults.append(f"{self.now}: served and not trusted")

    # What is stored.

    @property
    def bundle(self) -> bytes:
        config: dict[str, Any] = self.store.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]
        return base64.b64decode(config.get("caBundle", ""))

    def part(self, path: str, key: str) -> bytes:
        return base64.b64decode(self.store.objects[path]["data"].get(key, ""))

    def put_issued(self, pair: Pair, authorities: bytes) -> None:
        parts = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authorities}
        data = {key: base64.b64encode(value).decode() for key, value in parts.items()}
        self.store.put(ISSUED, {"type": "kubernetes.io/tls", "data": data})

    async def settle(self, *replicas: str) -> None:
        """Let time pass and replicas follow until nothing is written any more."""
        for _ in range(30):
            writes = len(self.store.writes)
            again_s = await self.run()
            before = dict(self.serving)
            if TLS in self.store.objects:
                self.follow(*replicas)
            if len(self.store.writes) == writes and before == self.serving and again_s == 600:
                return
            self.now += timedelta(seconds=min(again_s or 1, 11))
        raise AssertionError("it does not settle")


def is_signed_by(leaf: bytes, bundle: bytes) -> bool:
    found = x509.load_pem_x509_certificate(leaf)
    for authority in x509.load_pem_x509_certificates(bundle):
        try:
            found.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError):
            continue
        return True
    return False


@pytest.fixture
def scene() -> Scene:
    made = Scene()
    made.install()
    return made


async def test_first_run_makes_everything_in_order_and_waits_for_nobody(scene: Scene) -> None:
    again_s = await scene.run()

    assert again_s == 600
    assert [path for _, path in scene.store.writes] == [CA, CONFIGURATION, TLS]
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
    await scene.settle("a", "b")
    before, bundle = scene.part(TLS, "tls.crt"), scene.bundle

    scene.now += timedelta(days=61)
    await scene.settle("a", "b")

    assert scene.part(TLS, "tls.crt") != before
    assert scene.bundle == bundle
    assert scene.faults == []


async def age(scene: Scene) -> None:
    scene.now += timedelta(days=250)


async def ask(scene: Scene) -> None:
    scene.store.objects[CA]["metadata"]["annotations"] = {names.RENEW: "please", "mine": "stays"}


async def delete_authority(scene: Scene) -> None:
    del scene.store.objects[CA]


async def bring_own(scene: Scene) -> None:
    pair = certificates.issue_authority(scene.now)
    parts = {"tls.crt": pair.certificate, "tls.key": pair.key}
    data = {key: base64.b64encode(value).decode() for key, value in parts.items()}
    scene.store.put(CA, {**scene.store.objects[CA], "data": data})


CAUSES = [age, ask, delete_authority, bring_own]


@pytest.mark.parametrize("cause", CAUSES)
async def test_change_of_authority_trusts_both_until_the_last_replica_follows(
    scene: Scene, cause: Any
) -> None:
    await scene.settle("a", "b")
    old_leaf, old = scene.part(TLS, "tls.crt"), scene.bundle
    await cause(scene)

    assert await scene.run() == pytest.approx(PROPAGATION_S)
    new = scene.part(CA, "tls.crt")
    assert new != old
    assert scene.part(TLS, "tls.crt") == old_leaf
    assert scene.bundle == scene.part(TLS, "ca.crt") == new + old
    scene.now += timedelta(seconds=PROPAGATION_S)
    await scene.run()
    assert scene.part(TLS, "tls.crt") != old_leaf
    scene.follow("a")
    await scene.run()
    assert scene.bundle == new + old, "b still needs the old one"
    scene.follow("b")
    await scene.run()
    assert scene.bundle == scene.part(TLS, "ca.crt") == new
    assert scene.faults == []


async def test_renewal_that_was_asked_for_happens_once(scene: Scene) -> None:
    await scene.settle("a")
    first = scene.bundle
    await ask(scene)

    await scene.settle("a")

    second = scene.bundle
    assert second != first
    assert scene.store.objects[CA]["metadata"]["annotations"] == {"mine": "stays"}
    await scene.settle("a")
    assert scene.bundle == second


async def test_renewal_asked_for_during_a_change_comes_after_it(scene: Scene) -> None:
    await scene.settle("a", "stuck")
    old = scene.bundle
    await ask(scene)
    await scene.settle("a")
    await ask(scene)

    await scene.settle("a")

    assert scene.bundle == scene.part(CA, "tls.crt") + old
    before = scene.part(CA, "tls.crt")
    del scene.serving["stuck"]
    scene.show_replicas()
    await scene.settle("a")
    assert scene.part(CA, "tls.crt") != before
    assert scene.bundle == scene.part(CA, "tls.crt")
    assert scene.faults == []


@pytest.mark.parametrize("write", range(1, 7))
@pytest.mark.parametrize("cause", CAUSES)
async def test_death_after_any_write_converges(scene: Scene, cause: Any, write: int) -> None:
    await scene.settle("a", "b")
    old = scene.bundle
    await cause(scene)
    scene.store.dies_after = len(scene.store.writes) + write

    try:
        await scene.settle("a", "b")
    except DeathError:
        # Its successor comes at once, and knows nothing but what is stored.
        scene.restart()
    await scene.settle("a", "b")

    assert scene.bundle == scene.part(TLS, "ca.crt") == scene.part(CA, "tls.crt")
    assert scene.bundle != old
    assert scene.faults == []


async def test_death_at_every_step_in_a_row_converges(scene: Scene) -> None:
    await scene.settle("a", "b")
    old = scene.bundle
    await ask(scene)

    deaths = 0
    for _ in range(20):
        scene.store.dies_after = len(scene.store.writes) + 1
        try:
            await scene.settle("a", "b")
        except DeathError:
            deaths += 1
            scene.restart()

    # authority, remember, trust, serve, remember, trust
    assert deaths == 6
    assert scene.bundle == scene.part(CA, "tls.crt")
    assert scene.bundle != old
    assert scene.faults == []


@pytest.mark.parametrize("end", ["Succeeded", "Failed", "overdue"])
async def test_replica_that_is_over_is_not_waited_for(scene: Scene, end: str) -> None:
    await scene.settle("a", "b")
    await ask(scene)
    await scene.run()
    scene.now += timedelta(seconds=PROPAGATION_S)
    await scene.run()
    scene.follow("a")
    pod = scene.store.objects[PODS]["items"][1]
    if end == "overdue":
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:05Z"
    else:
        pod["status"] = {"phase": end}

    await scene.run()

    assert scene.bundle == scene.part(CA, "tls.crt")


async def test_both_secrets_and_the_bundle_lost_are_made_anew(scene: Scene) -> None:
    await scene.settle("a")
    del scene.store.objects[CA], scene.store.objects[TLS]
    scene.install()

    await scene.settle("a")

    assert scene.bundle == scene.part(CA, "tls.crt") == scene.part(TLS, "ca.crt")
    assert is_signed_by(scene.serving["a"], scene.bundle)


async def test_wiped_bundle_is_put_back(scene: Scene) -> None:
    await scene.run()
    bundle = scene.bundle
    scene.install()

    await scene.run()

    assert scene.bundle == bundle


async def test_bundle_wiped_during_a_change_holds_both_again(scene: Scene) -> None:
    await scene.settle("a")
    old = scene.bundle
    await delete_authority(scene)
    await scene.run()
    scene.install()
    scene.restart()

    await scene.run()

    assert scene.bundle == scene.part(CA, "tls.crt") + old


async def test_bundle_follows_a_late_installation() -> None:
    scene = Scene()
    await scene.run()
    assert TLS in scene.store.objects
    scene.install()

    await scene.run()

    assert scene.bundle == scene.part(CA, "tls.crt")


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
async def test_broken_secret_is_replaced(scene: Scene, key: str) -> None:
    await scene.run()
    scene.store.objects[TLS]["data"][key] = "AAAA"

    await scene.run()

    pair = Pair(certificate=scene.part(TLS, "tls.crt"), key=scene.part(TLS, "tls.key"))
    authority = Pair(certificate=scene.part(CA, "tls.crt"), key=scene.part(CA, "tls.key"))
    assert certificates.find_leaf_fault(pair, authority, DNS_NAMES, scene.now) == ""


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


# Somebody else issues.


@pytest.fixture
def foreign() -> Scene:
    made = Scene(is_foreign=True)
    made.install()
    return made


def issue(scene: Scene) -> Pair:
    """Play the issuer: a new authority and a new pair; returns the authority."""
    authority = certificates.issue_authority(scene.now)
    scene.put_issued(
        certificates.issue_leaf(authority, DNS_NAMES, scene.now), authority.certificate
    )
    return authority


async def test_nothing_is_issued_beside_a_foreign_issuer(foreign: Scene) -> None:
    assert await foreign.run() == 600
    assert foreign.store.writes == []

    authority = issue(foreign)
    await foreign.settle("a")

    assert [path for _, path in foreign.store.writes] == [CONFIGURATION, TLS]
    assert foreign.bundle == authority.certificate
    for key in ("tls.crt", "tls.key", "ca.crt"):
        assert foreign.part(TLS, key) == foreign.part(ISSUED, key)
    assert CA not in foreign.store.objects


async def test_pair_of_a_new_foreign_authority_is_served_once_it_is_trusted(foreign: Scene) -> None:
    old = issue(foreign)
    await foreign.settle("a", "b")
    old_leaf = foreign.part(TLS, "tls.crt")
    new = issue(foreign)

    assert await foreign.run() == pytest.approx(PROPAGATION_S)
    assert foreign.bundle == new.certificate + old.certificate
    assert foreign.part(TLS, "tls.crt") == old_leaf
    await foreign.settle("a", "b")
    assert foreign.bundle == new.certificate
    assert foreign.part(TLS, "tls.crt") == foreign.part(ISSUED, "tls.crt")
    assert foreign.faults == []


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("tls.crt", "tls.crt or tls.key cannot be read"),
        ("tls.key", "tls.crt or tls.key cannot be read"),
        ("ca.crt", "ca.crt holds no certificate"),
    ],
)
async def test_foreign_pair_that_cannot_be_used_is_told_and_changes_nothing(
    foreign: Scene, key: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    issue(foreign)
    await foreign.settle("a")
    writes = len(foreign.store.writes)
    issue(foreign)
    foreign.store.objects[ISSUED]["data"][key] = base64.b64encode(b"broken").decode()

    assert await foreign.run() == 600

    assert len(foreign.store.writes) == writes
    assert any(words in str(vars(record)) for record in caplog.records)


async def test_foreign_pair_for_other_names_is_told(
    foreign: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    authority = certificates.issue_authority(foreign.now)
    pair = certificates.issue_leaf(authority, DNS_NAMES[:1], foreign.now)
    foreign.put_issued(pair, authority.certificate)

    await foreign.run()

    assert foreign.store.writes == []
    assert any("tls.crt is not for" in str(vars(record)) for record in caplog.records)


async def test_going_back_to_our_own_authority_keeps_the_foreign_one_meanwhile() -> None:
    scene = Scene(is_foreign=True)
    scene.install()
    foreign = issue(scene)
    await scene.settle("a")
    scene.is_foreign = False
    scene.restart()

    await scene.run()

    assert scene.bundle == scene.part(CA, "tls.crt") + foreign.certificate
    await scene.settle("a")
    assert scene.bundle == scene.part(CA, "tls.crt")
    assert scene.faults == []
