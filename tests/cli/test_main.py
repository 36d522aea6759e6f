"""The command as users run it: exit codes, one line on stderr, no traceback."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from berthmaster.api.names import GATE
from berthmaster.cli.contexts import find_namespace
from berthmaster.cli.main import build_parser
from cli.harbour import allocation, furnish, manifest, rates
from support.fake_api import FakeApi, Refusal

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "SERVER"}}]
users: [{name: u, user: {}}]
contexts:
- {name: one, context: {cluster: c, user: u, namespace: default}}
- {name: two, context: {cluster: c, user: u, namespace: team-b}}
- {name: bare, context: {cluster: c, user: u}}
current-context: two
"""


def environment(kubeconfig: Path | str) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT") if key in os.environ}
    return {**kept, "KUBECONFIG": str(kubeconfig), "PYTHONSAFEPATH": "1"}


def run(
    *arguments: str, kubeconfig: Path | str = "/nonexistent/config"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "berthmaster.cli.main", *arguments]
    return subprocess.run(
        command,
        env=environment(kubeconfig),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def run_against(api: FakeApi, folder: Path, *arguments: str) -> tuple[int, str, str]:
    config = folder / "config"
    config.write_text(KUBECONFIG.replace("SERVER", api.url))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "berthmaster.cli.main",
        *arguments,
        env=environment(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def test_no_kubeconfig_is_one_clear_line() -> None:
    result = run("why", "pod1")

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "error: no usable cluster configuration (/nonexistent/config): "
        "file not found: /nonexistent/config; set KUBECONFIG or --kubeconfig\n"
    )


def test_unreachable_cluster_is_one_clear_line(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(KUBECONFIG.replace("SERVER", "http://127.0.0.1:1"))

    result = run("ungate", "pod1", kubeconfig=config)

    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot reach the cluster at http://127.0.0.1:1")
    assert result.stderr.count("\n") == 1


def test_garbled_kubeconfig_is_one_clear_line(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(": {")

    result = run("why", "pod1", kubeconfig=config)

    assert result.returncode == 1
    assert result.stderr.startswith(f"error: no usable cluster configuration ({config})")
    assert result.stderr.count("\n") == 1


def test_version_needs_no_cluster() -> None:
    result = run("--version")

    assert result.returncode == 0
    assert result.stdout.startswith("berthmaster ")


@pytest.mark.parametrize(
    "arguments", [["why"], ["ungate"], ["ungate", "p", "--all"], ["-o", "xml", "why", "p"], []]
)
def test_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(arguments)

    assert caught.value.code == 2


def test_options_may_stand_on_both_sides() -> None:
    before = build_parser().parse_args(["-n", "x", "-o", "json", "why", "p"])
    after = build_parser().parse_args(["why", "p", "-n", "x", "-o", "json"])

    assert (before.namespace, before.output) == (after.namespace, after.output) == ("x", "json")


async def test_missing_pod_names_the_way_out(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, manifest())

        code, out, err = await run_against(api, tmp_path, "why", "ghost")

    assert (code, out) == (1, "")
    assert err == (
        "error: pod team-b/ghost not found; -n chooses another namespace, "
        "`kubectl get pods -n team-b` lists what is there\n"
    )


async def test_why_compares_nodes_for_a_placed_pod_unless_told_or_forbidden(
    tmp_path: Path,
) -> None:
    async with FakeApi() as api:
        placed = manifest(decision=allocation(), node="node-a", request=rates("30Mi", "20Mi"))
        furnish(api, placed)
        code, out, err = await run_against(api, tmp_path, "why", "default/pod1")
        _, recorded, _ = await run_against(api, tmp_path, "why", "default/pod1", "--recorded")
        api.fail_next("GET", "/api/v1/nodes", Refusal(403, "Forbidden"))
        forbidden_code, forbidden, _ = await run_against(api, tmp_path, "why", "default/pod1")

    assert (code, err) == (0, "")
    assert "Nodes now, the nearest first" in out
    assert "as if the pod came once more" in out
    assert "Nodes now" not in recorded
    assert "Scores on node-a" in recorded
    assert forbidden_code == 0
    assert "note: nodes are not compared: " in forbidden


async def test_why_explains_a_waiting_pod(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, manifest(gates=(GATE,), request=rates("2Gi", "1Mi")))

        code, out, err = await run_against(api, tmp_path, "why", "default/pod1", "-o", "json")

    assert (code, err) == (0, "")
    assert json.loads(out)["recomputed"]["nearest"] == "node-a"


async def test_refusal_of_the_api_server_is_quoted(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, manifest(gates=(GATE,)))
        api.fail_next("GET", "/api/v1/nodes", Refusal(403, "Forbidden", "cannot list nodes"))

        code, _, err = await run_against(api, tmp_path, "--context", "one", "why", "pod1")

    assert code == 1
    assert err == "error: the API server refused: 403 Forbidden: cannot list nodes\n"


async def test_ungate_all_fails_if_one_does(tmp_path: Path) -> None:
    async with FakeApi() as api:
        furnish(api, manifest(gates=(GATE,)), manifest("pod2", gates=(GATE,)))
        path = "/api/v1/namespaces/default/pods/pod1"
        api.fail_next("PATCH", path, Refusal(403, "Forbidden", "no"))

        code, out, _ = await run_against(api, tmp_path, "ungate", "--all")

    assert code == 1
    assert "1 of 2 gated pods ungated." in out
    assert "403 Forbidden: no" in out


def test_namespace_is_that_of_the_context(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(KUBECONFIG.replace("SERVER", "http://127.0.0.1:1"))

    assert find_namespace(str(config)) == "team-b"
    assert find_namespace(str(config), "one") == "default"
    assert find_namespace(str(config), "bare") == "default"
    assert find_namespace(str(config), "unknown") == "default"
