"""A real Kubernetes control plane on this machine, for demo, tests and benchmarks."""
