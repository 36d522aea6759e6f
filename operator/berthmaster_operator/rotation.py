"""What to do next for the webhook's certificates: a situation in, one step out. Pure.

    authority --> TLS Secret: ca.crt --> caBundle --(API servers follow)--> TLS Secret: pair
                        old + new            old + new          10 s              new
                                                                                   |
              caBundle <-- TLS Secret: ca.crt <--(each replica says what it serves)'
                   new          new

The webhook must never present a certificate that an API server does not trust yet, nor one that it
does not trust any more. So what is trusted grows first, the pair changes later, and the old authority
goes last, when every replica has reported (an annotation on its pod) that it serves the new pair.

Nothing is remembered but what is stored: after a restart in the middle the same situation gives the
same step. What was trusted is written into the TLS Secret before it is written anywhere else, so it is
known even if the configuration is wiped or the authority's Secret deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from berthmaster.api.digests import certificate_digest
from berthmaster_operator import certificates
from berthmaster_operator.certificates import Pair

# API servers follow a changed webhook configuration by watch, within a second or two.
PROPAGATION_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAuthority:
    """We issue: the pair of the authority's Secret, and whether somebody asks for a new one."""

    pair: Pair | None
    is_renewal_asked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignIssuer:
    """Somebody else issues: the pair for the webhook, None while there is none, and its ca.crt."""

    pair: Pair | None
    authorities: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that the next step depends on."""

    now: datetime
    dns_names: Sequence[str]
    issuer: OwnAuthority | ForeignIssuer
    # The TLS Secret: what replicas serve as soon as they have seen it, and what was trusted last.
    leaf: Pair | None = None
    trusted: bytes = b""
    # caBundle of each webhook that is configured; None: there is no configuration.
    bundles: Sequence[bytes] | None = None
    # Something else in the configurations that is ours is not as it should be.
    is_outdated: bool = False
    # For how long this process has seen all of them trust the issuer's authorities, in seconds.
    in_place_s: float = 0.0
    # By replica: the digest of what it serves. One that serves nothing yet is not in it.
    serving: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IssueAuthority:
    """Make a new authority."""

    because: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Write what is to be trusted into the TLS Secret, beside the pair that is there."""

    bundle: bytes


@dataclass(frozen=True, slots=True)
class Trust:
    """Write the bundle into the configurations."""

    bundle: bytes


@dataclass(frozen=True, slots=True)
class WaitTrusted:
    """Wait until API servers have surely seen the bundle."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Serve:
    """Write a new pair into the TLS Secret: one that the authority signs, or the issuer's."""

    because: str
    bundle: bytes


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nothing can be done; say why. What is in use stays in use."""

    because: str


@dataclass(frozen=True, slots=True)
class Settled:
    """Nothing is due, except that these replicas have not said yet that they serve the pair."""

    awaited: tuple[str, ...] = ()


Step = IssueAuthority | Remember | Trust | WaitTrusted | Serve | Blocked | Settled


def plan(it: Situation) -> Step:
    """Return the one next step."""
    if isinstance(it.issuer, OwnAuthority):
        fault = certificates.find_authority_fault(it.issuer.pair, it.now)
        if it.issuer.pair is None or fault:
            return IssueAuthority(fault)
        authorities = it.issuer.pair.certificate
        because = certificates.find_leaf_fault(it.leaf, it.issuer.pair, it.dns_names, it.now)
        is_renewal_asked = it.issuer.is_renewal_asked
    else:
        if it.issuer.pair is None:
            return Blocked("nothing was issued yet")
        authorities = it.issuer.authorities
        fault = certificates.find_foreign_fault(it.issuer.pair, authorities, it.dns_names, it.now)
        if fault:
            return Blocked(fault)
        because = "" if it.leaf == it.issuer.pair else "another was issued"
        is_renewal_asked = False
    awaited = () if it.leaf is None else _awaited(it.leaf, it.serving)
    is_in_use = not because and not awaited
    if is_in_use and is_renewal_asked:
        # Not before: a change of authority is brought to its end first.
        return IssueAuthority("somebody asks for it")
    older = () if is_in_use else (it.trusted, *(it.bundles or ()))
    wanted = certificates.build_bundle(authorities, older, it.now)
    if it.leaf is not None and it.trusted != wanted:
        return Remember(wanted)
    if it.bundles is not None and (it.is_outdated or any(text != wanted for text in it.bundles)):
        return Trust(wanted)
    if not because:
        return Settled(awaited)
    # Where nobody serves anything nobody can be distrusted.
    if it.serving and it.bundles:
        wait_s = PROPAGATION_S - it.in_place_s
        if wait_s > 0:
            return WaitTrusted(wait_s)
    return Serve(because, wanted)


def authorities_of(issuer: OwnAuthority | ForeignIssuer) -> bytes:
    """Return whom the API servers have to trust from now on; empty while nobody is there."""
    if isinstance(issuer, ForeignIssuer):
        return issuer.authorities
    return issuer.pair.certificate if issuer.pair is not None else b""


def _awaited(leaf: Pair, serving: Mapping[str, str]) -> tuple[str, ...]:
    digest = certificate_digest(leaf.certificate)
    return tuple(sorted(name for name, served in serving.items() if served != digest))
