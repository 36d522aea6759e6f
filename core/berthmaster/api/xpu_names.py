"""What the XPU dialects call things: resources, a label, annotations, a ConfigMap.

The defaults are those of xpushare and of HAMi for Kunlun. Installations of their kind that call them
otherwise (gpushare: `aliyun.com/gpu-mem`, `ALIYUN_COM_GPU_MEM_IDX`, ...) say so in a policy. There is one
set of names for a cluster: pods of all policies meet on the same devices.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field

from berthmaster.api.schema import Model

_PREFIX = "BAIDU_COM_XPU_MEM"
# A qualified name, as labels, annotations and resources have it.
_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


def _key(description: str) -> object:
    return Field(min_length=1, max_length=316, pattern=_KEY, description=description)


class XPUNames(Model):
    """Names of the three dialects."""

    share_memory: Annotated[str, _key("xpushare: resource, MiB of a share.")] = "baidu.com/xpu-mem"
    share_count: Annotated[
        str, _key("xpushare: capacity of nodes, number of devices; pods never ask for it.")
    ] = "baidu.com/xpu-count"
    count_label: Annotated[str, _key("xpushare: label of pods, devices that a share spans.")] = (
        "baidu.com/xpu-count"
    )
    share_index: Annotated[str, _key("xpushare: annotation, indices of the devices.")] = (
        f"{_PREFIX}_IDX"
    )
    share_pod: Annotated[str, _key("xpushare: annotation, MiB of the pod.")] = f"{_PREFIX}_POD"
    share_device: Annotated[str, _key("xpushare: annotation, MiB of one device.")] = (
        f"{_PREFIX}_DEV"
    )
    share_assigned: Annotated[
        str, _key("xpushare: annotation, whether the device plugin has handed out the devices.")
    ] = f"{_PREFIX}_ASSIGNED"
    share_assume_time: Annotated[
        str, _key("xpushare: annotation, time of placement in nanoseconds.")
    ] = f"{_PREFIX}_ASSUME_TIME"
    cards: Annotated[str, _key("hami-kunlun: resource, whole cards.")] = "kunlunxin.com/xpu"
    slices: Annotated[str, _key("hami-vxpu: resource, cards of which a slice is asked.")] = (
        "kunlunxin.com/vxpu"
    )
    slice_memory: Annotated[str, _key("hami-vxpu: resource, MiB of a slice of each card.")] = (
        "kunlunxin.com/vxpu-memory"
    )
    registration: Annotated[str, _key("HAMi: annotation of nodes, the registered cards.")] = (
        "hami.io/node-register-xpu"
    )
    handshake: Annotated[str, _key("HAMi: annotation of nodes, whether their plugin lives.")] = (
        "hami.io/node-handshake-xpu"
    )
    node_cordon: Annotated[
        str, _key("HAMi: annotation of nodes, ids of devices that take no new pods.")
    ] = "hami.io/device-cordon"
    node: Annotated[str, _key("HAMi: annotation, the node.")] = "hami.io/vgpu-node"
    time: Annotated[str, _key("HAMi: annotation, time of placement in seconds.")] = (
        "hami.io/vgpu-time"
    )
    bind_phase: Annotated[str, _key("HAMi: annotation, allocating, success or failed.")] = (
        "hami.io/bind-phase"
    )
    bind_time: Annotated[str, _key("HAMi: annotation, time of binding in seconds.")] = (
        "hami.io/bind-time"
    )
    cards_allocated: Annotated[str, _key("hami-kunlun: annotation, the cards.")] = (
        "hami.io/kunlun-allocated"
    )
    card_index: Annotated[str, _key("hami-kunlun: annotation, indices of the cards.")] = (
        "BAIDU_COM_DEVICE_IDX"
    )
    slices_to_allocate: Annotated[str, _key("hami-vxpu: annotation, the slices to hand out.")] = (
        "hami.io/xpu-devices-to-allocate"
    )
    slices_allocated: Annotated[str, _key("hami-vxpu: annotation, the slices.")] = (
        "hami.io/xpu-devices-allocated"
    )
    use_ids: Annotated[str, _key("HAMi: annotation, ids of cards that will do.")] = (
        "hami.io/use-xpu-uuid"
    )
    no_use_ids: Annotated[str, _key("HAMi: annotation, ids of cards that will not do.")] = (
        "hami.io/no-use-xpu-uuid"
    )
    old_use_ids: Annotated[str, _key("HAMi: older annotation, as useIds.")] = (
        "baidu.com/use-gpuuuid"
    )
    old_no_use_ids: Annotated[str, _key("HAMi: older annotation, as noUseIds.")] = (
        "baidu.com/nouse-gpuuuid"
    )
    device_policy: Annotated[
        str, _key("hami-vxpu: annotation, a list with `mutex` for idle cards only.")
    ] = "hami.io/gpu-scheduler-policy"
    node_policy: Annotated[str, _key("HAMi: annotation, binpack or spread over nodes.")] = (
        "hami.io/node-scheduler-policy"
    )
    unhealthy_prefix: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            pattern="^[a-z0-9]([-a-z0-9.]*)$",
            description="ConfigMaps in kube-system that list unhealthy devices are called so, with the "
            "node's name behind it.",
        ),
    ] = "unhealthy-xpu-"
    unhealthy_key: Annotated[str, _key("Key in it with the indices, with commas between.")] = "xpus"

    @cached_property
    def resources(self) -> frozenset[str]:
        """Return the resources by which a pod asks for devices."""
        return frozenset((self.share_memory, self.cards, self.slices, self.slice_memory))

    @cached_property
    def asked(self) -> frozenset[str]:
        """Return the resources that say that a pod wants devices at all."""
        return frozenset((self.share_memory, self.cards, self.slices))

    @cached_property
    def written_keys(self) -> frozenset[str]:
        """Return the annotations of pods that are written when they are placed, and after."""
        return self.placed_keys | {
            *(self.share_pod, self.share_device, self.share_assigned, self.share_assume_time),
            *(self.node, self.time, self.bind_phase, self.bind_time),
        }

    @cached_property
    def placed_keys(self) -> frozenset[str]:
        """Return the annotations of pods that say which devices they have."""
        return frozenset(
            (
                self.share_index,
                self.cards_allocated,
                self.card_index,
                self.slices_to_allocate,
                self.slices_allocated,
            )
        )


DEFAULT_NAMES = XPUNames()
