"""How long the webhook waits for what an API server may still store, unless it is told otherwise.

`kubectl berth doctor` holds the same against the timeouts of other webhooks.
"""

from __future__ import annotations

# How long an API server lets a request run unless told otherwise, whatever webhooks may take.
REQUEST_TIMEOUT_S = 60.0
# Until then an answer of a leader that crashed may still be stored.
TAKEOVER_WAIT_S = REQUEST_TIMEOUT_S + 5.0
# Longer than an API server lets a request run, so that an answer which has not shown as a pod by then
# never will.
ASSUME_TTL_S = REQUEST_TIMEOUT_S + 10.0
