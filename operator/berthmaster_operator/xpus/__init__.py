"""Accelerators for the operator: NodeXPU objects, and what Nodes must advertise."""
