"""Kubernetes input and output, shared by all programs: client, informers, leases, events, patches."""
