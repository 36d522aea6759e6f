"""Pods that ask for XPUs, and the annotations that a placement in each dialect writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from support.builders import Manifest, make_container, make_pod_manifest


def make_share_pod(
    name: str, mib: int, *, count: int | None = None, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return a pod that shares devices by memory, as xpushare asks."""
    pod = make_limited_pod(name, {"baidu.com/xpu-mem": str(mib)}, annotations=annotations)
    if count is not None:
        pod["metadata"]["labels"] = {"baidu.com/xpu-count": str(count)}
    return pod


def make_card_pod(
    name: str, cards: int, *, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return a pod that asks for whole cards."""
    return make_limited_pod(name, {"kunlunxin.com/xpu": str(cards)}, annotations=annotations)


def make_slice_pod(
    name: str, cards: int, mib: int | None = None, *, annotations: Mapping[str, str] | None = None
) -> Manifest:
    """Return a pod that asks for slices of cards."""
    limits = {"kunlunxin.com/vxpu": str(cards)}
    if mib is not None:
        limits["kunlunxin.com/vxpu-memory"] = str(mib)
    return make_limited_pod(name, limits, annotations=annotations)


def make_limited_pod(
    name: str,
    *limits: Mapping[str, str],
    init: Sequence[Mapping[str, str]] = (),
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a pod with a container per map of limits, requests being the same."""
    spec: dict[str, Any] = {
        "containers": [_limited(f"c{at}", it) for at, it in enumerate(limits)],
    }
    if init:
        spec["initContainers"] = [_limited(f"i{at}", it) for at, it in enumerate(init)]
    return make_pod_manifest(name, annotations=annotations, **spec)


def _limited(name: str, limits: Mapping[str, str]) -> Manifest:
    return make_container(name, requests=limits, limits=limits)


def share_annotations(indices: str, mib: int, *, assumed_ns: int = 1) -> dict[str, str]:
    """Return what an xpushare extender writes before it binds."""
    return {
        "BAIDU_COM_XPU_MEM_IDX": indices,
        "BAIDU_COM_XPU_MEM_POD": str(mib),
        "BAIDU_COM_XPU_MEM_ASSIGNED": "false",
        "BAIDU_COM_XPU_MEM_ASSUME_TIME": str(assumed_ns),
    }


def slice_annotations(node: str, devices: str, *, bound_s: int = 1) -> dict[str, str]:
    """Return what HAMi writes for slices; `devices` in its encoding."""
    return {
        "hami.io/vgpu-node": node,
        "hami.io/vgpu-time": str(bound_s),
        "hami.io/xpu-devices-to-allocate": devices,
        "hami.io/xpu-devices-allocated": devices,
        "hami.io/bind-phase": "allocating",
        "hami.io/bind-time": str(bound_s),
    }


def card_annotations(node: str, *containers: Sequence[int], bound_s: int = 1) -> dict[str, str]:
    """Return what HAMi writes for whole cards, by container."""
    entries = "".join(
        "".join(f"{node}-kunlun-{it},kunlun,98304,100:" for it in cards) + ";"
        for cards in containers
    )
    return {
        "hami.io/vgpu-node": node,
        "hami.io/vgpu-time": str(bound_s),
        "hami.io/kunlun-allocated": entries,
        "BAIDU_COM_DEVICE_IDX": ",".join(str(it) for cards in containers for it in cards),
        "hami.io/bind-phase": "allocating",
        "hami.io/bind-time": str(bound_s),
    }
