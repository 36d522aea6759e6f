"""Berthmaster: places pods on the nodes that suit them, beside the stock kube-scheduler.

The library is pure from `api` to `placement`; `cluster` talks to Kubernetes and `cli` to people.
"""
