"""Every key, name and label that is an interface: ours, upstream's, and Kubernetes' own.

A string that another program also knows stands here and nowhere else.
"""

from __future__ import annotations

GROUP = "berthmaster.io"
API_VERSION = f"{GROUP}/v1alpha1"

# On pods.
PLACEMENT = f"{GROUP}/placement"
ALLOCATION = f"{GROUP}/allocation"
GATE = f"{GROUP}/placement"
POLICY = f"{GROUP}/policy"
POLICY_PRIORITY = f"{GROUP}/policy-priority"
REPLACED_SCHEDULER = f"{GROUP}/replaced-scheduler"
PLACED_CONDITION = f"{GROUP}/Placed"
NUMA = f"{GROUP}/numa"
DATASET = f"{GROUP}/dataset"

# On namespaces.
QUEUE_WEIGHT = f"{GROUP}/queue-weight"

# On nodes.
DISK_IO_READY = "DiskIOReady"
DISK_IO_READY_ON_NODE = f"{GROUP}/{DISK_IO_READY}"
TOPOLOGY_READY = "TopologyReady"
TOPOLOGY_READY_ON_NODE = f"{GROUP}/{TOPOLOGY_READY}"
XPU_READY = "XPUReady"
XPU_READY_ON_NODE = f"{GROUP}/{XPU_READY}"
POWER_READY = "PowerReady"
POWER_READY_ON_NODE = f"{GROUP}/{POWER_READY}"
DATASET_READY = "DatasetReady"
DATASET_READY_ON_NODE = f"{GROUP}/{DATASET_READY}"

# The installation.
SYSTEM_NAMESPACE = "berthmaster-system"
WEBHOOK_SERVICE = "berthmaster-webhook"
WEBHOOK_LABEL = "app.kubernetes.io/name=berthmaster-webhook"
GATE_SERVICE = "berthmaster-gate"
GATE_CONFIGURATION = "berthmaster-gate"
WEBHOOK_SERVICE_ACCOUNT = "berthmaster-webhook"
OPERATOR_SERVICE_ACCOUNT = "berthmaster-operator"
# Who sees the harbour's page and decisions with their tables.
VIEWER_SERVICE_ACCOUNT = "berthmaster-viewer"
WEBHOOK_CONFIGURATION = "zz-berthmaster"
WEBHOOK_NAME = "placement.berthmaster.io"
WEBHOOK_PORT = 10250
WEBHOOK_PATH = "/place"
# Of both programs, TLS.
METRICS_PORT = 8443
WEBHOOK_TLS_SECRET = "berthmaster-webhook-tls"  # noqa: S105 - the name of an object
WEBHOOK_CA_SECRET = "berthmaster-webhook-ca"  # noqa: S105 - the name of an object
# Where an issuer other than our operator puts certificate, key and authority.
ISSUED_SECRET = "berthmaster-webhook-issued"  # noqa: S105 - the name of an object
# On the authority's Secret: make a new authority.
RENEW = f"{GROUP}/renew"
# On the webhook's own pod: the digest of the certificate that it serves.
SERVING = f"{GROUP}/serving-certificate"
WEBHOOK_LEASE = "berthmaster-webhook"
OPERATOR_LEASE = "berthmaster-operator"
HANDOVER = f"{GROUP}/assumed"
HEARTBEAT = f"{GROUP}/heartbeat"
ROLE_LABEL = f"{GROUP}/role"
ROLE_LEADER = "leader"
SELECTED_POLICY = "berthmaster-gate-selected"
BINDING_PREFIX = "berthmaster-policy-"
EXEMPT_NAMESPACES = ("kube-system", "kube-node-lease", SYSTEM_NAMESPACE)

# Field managers of server-side apply.
OPERATOR_MANAGER = "berthmaster-operator"
LEADER_MANAGER = "berthmaster-leader"

# Disk IO, as upstream calls it.
DISKIO_GROUP = "diskio.x-k8s.io"
DISKIO_API_VERSION = f"{DISKIO_GROUP}/v1alpha1"
DISKIO_NAMESPACE = "ioi-system"
DISKIO_REQUEST = "blockio.kubernetes.io/resources"
DISK_READ = f"{GROUP}/disk-read"
DISK_WRITE = f"{GROUP}/disk-write"
DISK_BLOCK_SIZE = f"{GROUP}/disk-block-size"
DISK_MODELS_CONFIG_MAP = "normalization-func"
DISK_MODELS_KEY = "diskVendors"
NODE_DISK_IO_STATS_SUFFIX = "-nodediskiostats"
EMPTY_DIR_DISK = "emptyDir"

# NUMA, as upstream calls it.
TOPOLOGY_GROUP = "topology.node.k8s.io"
TOPOLOGY_API_VERSION = f"{TOPOLOGY_GROUP}/v1alpha2"
ZONE_TYPE = "Node"
ZONE_PREFIX = "node-"
TOPOLOGY_POLICY = "topologyManagerPolicy"
TOPOLOGY_SCOPE = "topologyManagerScope"
TOPOLOGY_MAX_NUMA_NODES = "topologyManagerMaxNUMANodes"
# No updater writes these yet; where one does, or an administrator, they are honoured.
CPU_MANAGER_POLICY = "cpuManagerPolicy"
MEMORY_MANAGER_POLICY = "memoryManagerPolicy"
FINGERPRINT = "nodeTopologyPodsFingerprint"
FINGERPRINT_METHOD = "nodeTopologyPodsFingerprintMethod"
FINGERPRINT_EXCLUSIVE = "with-exclusive-resources"
# In which zone each container lies: at the top level, and the positions in each zone.
PLACEMENT_METADATA = f"{TOPOLOGY_GROUP}/numaplacement-metadata"
PLACEMENT_VECTOR = f"{TOPOLOGY_GROUP}/numaplacement-vector"
FINGERPRINT_ANNOTATION = f"{TOPOLOGY_GROUP}/fingerprint"
# The reason of a pod that its kubelet could not align.
TOPOLOGY_AFFINITY_ERROR = "TopologyAffinityError"

# XPU, as the three dialects call it; policies may rename what stands in `api.xpu_names`.
SHARE_DIALECT = "xpushare"
CARD_DIALECT = "hami-kunlun"
SLICE_DIALECT = "hami-vxpu"
XPU_DIALECTS = (SHARE_DIALECT, CARD_DIALECT, SLICE_DIALECT)
# What HAMi writes beside its devices, and whole cards are, whatever they are.
CARD_TYPE, SLICE_TYPE = "kunlun", "XPU"
WHOLE_CARD_MIB = 98304
# Where ConfigMaps list the unhealthy devices of nodes.
UNHEALTHY_XPUS_NAMESPACE = "kube-system"
GPUSHARE_ALLOCATION = "scheduler.framework.gpushare.allocation"

# Power, as WAO calls it; its second generation has two groups, which differ in nothing else.
WAO_GROUPS = ("wao.bitmedia.co.jp", "node.waok8s.github.io")
WAO_API_VERSIONS = tuple(f"{group}/v1beta1" for group in WAO_GROUPS)
WAO_TEMPERATURES = ("ambient", "cpu1", "cpu2")
WAO_HOST = "tensorflow/host"
WAO_PORT = "tensorflow/port"
WAO_MODEL = "tensorflow/name"
WAO_PREDICTOR = (WAO_HOST, WAO_PORT, WAO_MODEL)
WAO_MODEL_VERSION = "tensorflow/version"
WAO_MODEL_SIGNATURE = "tensorflow/signature"
# Ours: how the server that v1's labels name is spoken to, `grpc`, `grpcs`, `http` or `https`.
TENSORFLOW_SCHEME = f"{GROUP}/tensorflow-scheme"
SPREAD_RATES = ("wao.bitmedia.co.jp/podspread-rate", "waok8s.github.io/podspread-rate")
METRICS_API_VERSION = "metrics.k8s.io/v1beta1"

# Datasets, as Datashim calls them: the group of 0.4.0 and later first, since it wins.
DATASHIM_GROUPS = ("datashim.io", "com.ie.ibm.hpsys")
DATASHIM_VERSION = "v1alpha1"
DATASETS = "datasets"
DATASETS_INTERNAL = "datasetsinternal"

# Kubernetes.
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"
# What says of a pod which devices it has: dropped where a user sends it at creation.
FORGEABLE = (
    "BAIDU_COM_XPU_MEM_IDX",
    "BAIDU_COM_XPU_MEM_POD",
    "BAIDU_COM_XPU_MEM_DEV",
    "BAIDU_COM_XPU_MEM_ASSIGNED",
    "BAIDU_COM_XPU_MEM_ASSUME_TIME",
    "BAIDU_COM_DEVICE_IDX",
    "hami.io/vgpu-node",
    "hami.io/vgpu-time",
    "hami.io/kunlun-allocated",
    "hami.io/xpu-devices-to-allocate",
    "hami.io/xpu-devices-allocated",
    "hami.io/bind-phase",
    "hami.io/bind-time",
    GPUSHARE_ALLOCATION,
)
DROPPED = f"{GROUP}/dropped"
# What a pod wishes of its accelerators.
XPU_MODELS = f"{GROUP}/xpu-models"
XPU_EXCLUSIVE = f"{GROUP}/xpu-exclusive"
XPU_NUMA = f"{GROUP}/xpu-numa"
# By their default names: the API server's policies know no others.
DEVICE_RESOURCES = ("baidu.com/xpu-mem", "kunlunxin.com/xpu", "kunlunxin.com/vxpu")

HOSTNAME_LABEL = "kubernetes.io/hostname"
ZONE = "topology.kubernetes.io/zone"
REGION = "topology.kubernetes.io/region"
MIRROR_POD = "kubernetes.io/config.mirror"
NODE_NAME_FIELD = "metadata.name"
DEFAULT_SCHEDULER = "default-scheduler"
