"""Power: what meters, metrics and model servers say of each node, gathered beside the pods' way.

`book` knows what is configured and what was last read, `fetching` speaks HTTP with limits and has `channels` speak
gRPC, `trust` says whose certificates both believe, `asking` knows what to ask each kind of source, and
`collecting` does it on time. Decisions see only inventories.
"""
