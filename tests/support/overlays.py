"""Overlays as a user writes them: a folder outside the repository that names parts of config/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from berthmaster_sandbox.cluster import Sandbox

CONFIG = Path(__file__).parents[2] / "config"
COMPONENTS = sorted(path.name for path in CONFIG.glob("components/*"))


def write_overlay(
    folder: Path, *components: str, base: str = "overlays/sandbox", **more: Any
) -> Path:
    """Write a kustomization with these components into a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)

    def find(part: str) -> str:
        # kustomize takes no absolute paths.
        return os.path.relpath(CONFIG / part, folder)

    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [find(base)],
        "components": [find(f"components/{it}") for it in components],
        **more,
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder


async def build(sandbox: Sandbox, folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization."""
    done = await sandbox.kubectl("kustomize", str(folder))
    return list(yaml.safe_load_all(done.stdout))
