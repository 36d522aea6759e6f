"""The scheduler-extender protocol, for clusters that keep their extender configuration.

kube-scheduler asks which nodes have the devices (`filter`), how good they are (`prioritize`), and lets us
bind (`bind`). Answers come from the ledger and the engine of the admission webhook, so both ways may be
used at once. It decides accelerators alone: everything else kube-scheduler has judged already.
"""
