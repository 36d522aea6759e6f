"""What the tests of availability share."""

from __future__ import annotations

# As short as nothing on this machine can be late: no API server lets a request of ours run so long here.
TAKEOVER_WAIT_S = 4.0
ASSUME_TTL_S = 8.0
LEASE_S = 6.0
NODE = "ship"
