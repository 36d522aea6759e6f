"""Start the operator: settings, logs, signals; everything else is `program`.

Exit status: 0 after a requested stop, 1 when something made going on impossible, 2 for a wrong
command line or no usable cluster configuration.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Sequence

from berthmaster.cluster.client import Client
from berthmaster.cluster.errors import ConfigurationError
from berthmaster.json_logs import set_up_logs
from berthmaster_operator.program import Program
from berthmaster_operator.settings import Settings, read_settings

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    settings = read_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
    set_up_logs(settings.log_level)
    logger.info("starting", extra={"settings": json.dumps(settings.as_fields())})
    try:
        asyncio.run(_run(settings))
    except ConfigurationError as error:
        logger.error("no cluster", extra={"error": str(error)})
        return 2
    # The boundary of the process: whatever it was, it is logged and the kubelet starts us anew.
    except Exception:
        logger.exception("stopped by an error")
        return 1
    logger.info("stopped")
    return 0


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    take_signals()
    # A restarted container must be a stranger to the Lease that it held before.
    identity = f"{settings.pod_name}_{secrets.token_hex(4)}"
    async with await Client.connect(user_agent="berthmaster-operator") as client:
        program = Program(settings, client, identity=identity)
        await program.run(stop, restore_signals=take_signals)


if __name__ == "__main__":
    sys.exit(main())
