"""The operator: vendors' objects in, NodeInventories, reservations, bindings and certificates out."""
