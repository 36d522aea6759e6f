"""A kubelet whose containers are local processes.

`kubelet.py` owns the node and the watch of its pods, `workers.py` one pod's life, `containers.py`
one container's, `processes.py` one process; `nodes.py` keeps the Node, `serving.py` its logs. What they decide is in modules without input or
output: `environment.py` (variables and paths), `probing.py` (thresholds), `statuses.py` (what is
reported). Who writes a pod for this node finds what its process gets in `environment.py`.
"""

from berthmaster_sandbox.kubelet.kubelet import Kubelet

__all__ = ["Kubelet"]
