"""The decision: node table, ledger, engine, affinity merging. Pure and synchronous."""
