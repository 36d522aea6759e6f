"""The chaos suite: Berthmaster under load while its world falls apart, and a count of what came of it.

    python -m berthmaster_sandbox.chaos --seed 1          or: make chaos

A sandbox with three replicas of the webhook and two of the operator, simulated nodes with disks, NUMA
zones, accelerators, datasets and power, and Deployments and Jobs that come and go under quotas. Fault after
fault is made (`faults.py`), in an order, with a load and with gaps that one seed decides. After each, the
load pauses, and everything is counted anew from the API server's objects and the simulated world's books
(`recount.py`, which knows nothing of our ledger): promises 1 to 3 of the architecture must hold.

    relays.py     TCP relays between our pods and the API server, where watches are cut or left half-open
    scene.py      the cluster, its worlds, what is installed
    load.py       Deployments and Jobs, and canaries: one pod every half a second, to measure by
    faults.py     a class per kind of fault
    clocks/       what shifts the wall clock of our processes
    recount.py    the independent count
    storm.py      fault, first placement, pause, count; again
    report.py     the report, as Markdown
"""
