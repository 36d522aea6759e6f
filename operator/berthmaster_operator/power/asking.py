"""What each kind of source is asked, and how its answer is read: values out, or words why there are none."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from berthmaster.api.inventory import PowerCurve
from berthmaster.api.ipmi import read_page
from berthmaster.api.power import EndpointTerm, NodeConfigTerms
from berthmaster.api.redfish import (
    INLET_PROBES,
    SYSTEMS_PATH,
    Probe,
    model_path,
    read_power,
    read_pressure,
    read_system_id,
)
from berthmaster.api.tf_serving import PREDICT
from berthmaster.cluster.errors import ClusterError
from berthmaster.cluster.stores import Gets
from berthmaster.concerns.power import questions
from berthmaster.concerns.power.questions import Question, UnaskableError, curve_of
from berthmaster_operator.power.book import Job, Source
from berthmaster_operator.power.fetching import Credentials, FetchError

_FAKE = "Fake"
_FAKE_INLET, _FAKE_PRESSURE = 15.5, 7.5
_SECRET_TIMEOUT_S = 5.0
# Probes that worked, by endpoint; more than any fleet has.
_ENDPOINTS_REMEMBERED = 20_000


class Fetches(Protocol):
    """The part of `Fetcher` that is needed here."""

    async def get_json(self, url: str, credentials: Credentials | None = None) -> Any:
        """Return what a URL gives, as JSON data."""
        ...

    async def get_text(self, url: str, credentials: Credentials | None = None) -> str:
        """Return what a URL gives, as text."""
        ...

    async def post_json(
        self, url: str, body: object, credentials: Credentials | None = None
    ) -> Any:
        """Return what a server answers to JSON data."""
        ...

    async def call(
        self, origin: str, method: str, message: bytes, credentials: Credentials | None = None
    ) -> bytes:
        """Return what a server answers to a gRPC message."""
        ...


class Asker:
    """Asks meters, BMCs and model servers. All of it raises `FetchError` or `UnaskableError`."""

    def __init__(self, fetcher: Fetches, store: Gets) -> None:
        self._fetcher = fetcher
        self._store = store
        self._probes: dict[str, Probe] = {}

    async def read(self, job: Job) -> dict[str, float]:
        """Return the values that a job's sensor gives, by name."""
        if job.source is Source.IPMI:
            return await self._read_ipmi(job.url)
        if job.source is Source.INLET:
            return await self._read_inlet(job)
        return {"deltaP": await self._read_pressure(job)}

    async def power_term(self, terms: NodeConfigTerms, namespace: str) -> EndpointTerm:
        """Return where the power model is asked: what the provider names, where there is one."""
        provider = terms.provider
        if provider is None:
            return terms.power or EndpointTerm()
        if provider.type == _FAKE:
            return EndpointTerm(type=_FAKE)
        if provider.type != "Redfish":
            raise UnaskableError(f"unknown endpoint type: {provider.type}")
        base = _base(provider.endpoint)
        credentials = await self._credentials(provider, namespace)
        systems = await self._fetcher.get_json(f"{base}{SYSTEMS_PATH}", credentials)
        system_id = read_system_id(systems)
        if system_id is None:
            raise FetchError(f"{base}: it names no system")
        answer = await self._fetcher.get_json(f"{base}{model_path(system_id)}", credentials)
        found = answer.get("PowerConsumptionModel") if isinstance(answer, Mapping) else None
        return questions.term_of_redfish(found, terms.power)

    async def curve(
        self, question: Question, term: EndpointTerm, namespace: str
    ) -> PowerCurve | None:
        """Return the curve that a model server gives; None where none of its watts is plausible."""
        if question.ref.protocol is questions.Protocol.FAKE:
            return curve_of(question.cores, [questions.FAKE_WATTS] * len(question.cores))
        credentials = await self._credentials(term, namespace)
        try:
            watts = question.read_answer(await self._ask(question, credentials))
        except FetchError as error:
            raise FetchError(f"{question.ref}: {error}") from error
        except ValueError as error:
            raise FetchError(f"{question.ref}: its answer is no prediction: {error}") from error
        curve = curve_of(question.cores, watts)
        return curve if curve is not None and max(curve.watts) >= 0 else None

    async def _ask(self, question: Question, credentials: Credentials | None) -> Any:
        url = question.ref.url
        if question.ref.protocol is questions.Protocol.TF_GRPC:
            return await self._fetcher.call(url, PREDICT, question.message(), credentials)
        return await self._fetcher.post_json(url, question.body(), credentials)

    async def _read_ipmi(self, url: str) -> dict[str, float]:
        try:
            page = read_page(await self._fetcher.get_text(url))
        except FetchError as error:
            raise FetchError(f"{url}: {error}") from error
        found = page.v1_temperatures()
        watts = {} if page.watts is None else {"watts": page.watts}
        if found is None:
            if not watts:
                raise FetchError(f"{url}: not all of the sensors Ambient, CPU1 and CPU2 are on it")
            return watts
        return {**found, **watts}

    async def _read_inlet(self, job: Job) -> dict[str, float]:
        if job.term.type == _FAKE:
            return {"inlet": _FAKE_INLET}
        if job.term.type != "Redfish":
            raise FetchError(f"inletTemp: unknown endpoint type: {job.term.type:.60}")
        base = _base(job.term.endpoint)
        credentials = await self._credentials(job.term, job.namespace)
        known = self._probes.get(base)
        probes = (known,) if known is not None else INLET_PROBES
        last: FetchError | None = None
        for probe in probes:
            try:
                answer = await self._fetcher.get_json(f"{base}{probe.path}", credentials)
            except FetchError as error:
                last = error
                continue
            value = probe.read(answer) if isinstance(answer, Mapping) else None
            if value is not None:
                if len(self._probes) >= _ENDPOINTS_REMEMBERED:
                    self._probes.clear()
                self._probes[base] = probe
                watts = await self._read_watts(job, base + probe.power_path, credentials)
                return {"inlet": value, **watts}
        self._probes.pop(base, None)
        words = f": {last}" if last is not None else ""
        raise FetchError(f"{base}: no inlet temperature of any known vendor{words}")

    async def _read_watts(
        self, job: Job, url: str, credentials: Credentials | None
    ) -> dict[str, float]:
        """Return what the machine draws, where that is of use and the BMC says it."""
        if not job.wants_watts:
            return {}
        try:
            watts = read_power(await self._fetcher.get_json(url, credentials))
        except FetchError:
            # Not every BMC has it; the temperature is good without.
            return {}
        return {} if watts is None else {"watts": watts}

    async def _read_pressure(self, job: Job) -> float:
        if job.term.type == _FAKE:
            return _FAKE_PRESSURE
        if job.term.type != "DifferentialPressureAPI":
            raise FetchError(f"deltaP: unknown endpoint type: {job.term.type:.60}")
        base = _base(job.term.endpoint)
        credentials = await self._credentials(job.term, job.namespace)
        url = f"{base}/api/sensor/by_nodename/{quote(job.node, safe='')}"
        try:
            value = read_pressure(await self._fetcher.get_json(url, credentials))
        except FetchError as error:
            raise FetchError(f"{base}: {error}") from error
        if value is None:
            raise FetchError(f"{base}: its answer has no plausible pressure")
        return value

    async def _credentials(self, term: EndpointTerm, namespace: str) -> Credentials | None:
        """Return what the term's Secret holds; one that cannot be read is never left out silently."""
        if not term.secret:
            return None
        name = f"{namespace}/{term.secret}"
        path = f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(term.secret, safe='')}"
        try:
            secret = await self._store.get(path, timeout_s=_SECRET_TIMEOUT_S)
        except ClusterError as error:
            raise FetchError(
                f"Secret {name} cannot be read; the component config/components/wao gives the right"
            ) from error
        data = secret.get("data")
        texts = [_decoded(data, key) for key in ("username", "password")]
        if not all(texts):
            raise FetchError(f"Secret {name}: expected username and password, found one empty")
        return Credentials(username=texts[0], password=texts[1])


def _base(endpoint: str) -> str:
    """Return an endpoint without a trailing slash, if it is one that may be asked."""
    try:
        parts = urlsplit(endpoint)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_http = False
    if not is_http or "@" in parts.netloc:
        raise FetchError(f'endpoint "{endpoint:.200}": expected http(s)://host without a user')
    return endpoint.rstrip("/")


def _decoded(data: object, key: str) -> str:
    text = data.get(key) if isinstance(data, Mapping) else None
    try:
        return base64.b64decode(text, validate=True).decode() if isinstance(text, str) else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""
