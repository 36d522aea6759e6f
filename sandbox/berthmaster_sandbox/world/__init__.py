"""The simulated world: what exporters and hardware do for nodes that have neither.

The world stands in for reality and so judges what Berthmaster does. It is written from the rules of
the vendors' programs alone and must not share code with the concerns that it judges.
"""
