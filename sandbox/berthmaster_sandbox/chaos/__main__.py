"""`make chaos`: the whole suite, or what the options choose of it. Ends with 1 if a promise broke."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import fields

from berthmaster_sandbox.chaos.faults import FAULTS
from berthmaster_sandbox.chaos.plan import Plan
from berthmaster_sandbox.chaos.report import describe, write_report
from berthmaster_sandbox.chaos.scene import open_scene
from berthmaster_sandbox.chaos.storm import Outcome, Storm
from berthmaster_sandbox.errors import SandboxError


def main() -> int:
    """Run, print the report, and return the exit code."""
    logging.basicConfig(level=logging.ERROR, format="[chaos] %(levelname)s %(message)s")
    try:
        return asyncio.run(_run(_read_plan()))
    except SandboxError as error:
        print(f"[chaos] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(plan: Plan) -> int:
    began_s = time.monotonic()

    def say(words: str) -> None:
        print(f"[chaos] {time.monotonic() - began_s:5.0f} s  {words}", file=sys.stderr)

    def tell(outcome: Outcome) -> None:
        say(describe(outcome))
        for violation in outcome.violations[:10]:
            say(f"  {violation}")

    async with open_scene(plan, say=say) as scene:
        storm = Storm(scene, tell, say)
        await storm.run()
        seconds = time.monotonic() - began_s
        print(write_report(plan, storm.outcomes, storm.tally.counts, seconds=seconds))
    return int(any(it.violations for it in storm.outcomes))


def _read_plan() -> Plan:
    parser = argparse.ArgumentParser(
        prog="python -m berthmaster_sandbox.chaos", description=(__doc__ or "").partition("\n")[0]
    )
    default = {it.name: it.default for it in fields(Plan)}
    parser.add_argument("--seed", type=int, default=default["seed"])
    parser.add_argument("--nodes", type=int, default=default["nodes"], help="simulated nodes")
    parser.add_argument("--pods", type=int, default=default["pods"], help="to be created in all")
    parser.add_argument("--alive", type=int, default=default["alive"], help="wanted at a time")
    parser.add_argument(
        "--duration", type=float, dest="duration_s", default=default["duration_s"], help="seconds"
    )
    parser.add_argument(
        "--down", type=float, dest="down_s", default=default["down_s"],
        help="seconds that all replicas are down",
    )  # fmt: skip
    parser.add_argument(
        "--faults", nargs="+", choices=sorted(FAULTS), default=(), metavar="FAULT",
        help=f"only these, in this order: {', '.join(sorted(FAULTS))}",
    )  # fmt: skip
    found = vars(parser.parse_args())
    return Plan(**{**found, "faults": tuple(found["faults"])})


if __name__ == "__main__":
    sys.exit(main())
