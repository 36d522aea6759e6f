"""Our client of KServe V2 against a real model server: MLServer with its scikit-learn runtime.

Both are in an environment of their own, which `make test-peers` makes.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from berthmaster.api.inventory import Reading
from berthmaster.api.power import EndpointTerm
from berthmaster.api.quantities import NANO
from berthmaster.api.settings.power import CpuUsageFormat
from berthmaster.concerns.power.questions import Question, ask_by_term
from berthmaster_operator.power.asking import Asker
from berthmaster_operator.power.fetching import Fetcher, FetchError
from berthmaster_sandbox.processes import ManagedProcess, start_process
from berthmaster_sandbox.world.power_machines import LEAN

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin"
READY_DEADLINE_S = 200.0

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        not (PEERS / "mlserver").exists(), reason="MLServer is not installed: make test-peers"
    ),
]


class NoSecrets:
    """No endpoint here names a Secret."""

    async def get(self, path: str, query: object = None, *, timeout_s: float) -> dict[str, Any]:
        raise AssertionError(path)


class Server:
    """A running MLServer; `predicted` are the watts that scikit-learn itself says for the grid."""

    def __init__(self, origin: str, predicted: list[float]) -> None:
        self.origin = origin
        self.predicted = predicted
        self.fetcher = Fetcher(timeout_s=10.0)
        self.asker = Asker(self.fetcher, NoSecrets())

    def term(self, model: str) -> EndpointTerm:
        endpoint = f"{self.origin}/v2/models/{model}/versions/v0.1.0/infer"
        return EndpointTerm(type="V2InferenceProtocol", endpoint=endpoint)


def question_for(term: EndpointTerm) -> Question:
    readings = {
        "inlet": Reading(value=24.5, sampled_s=0.0),
        "deltaP": Reading(value=0.01, sampled_s=0.0),
    }
    capacity = LEAN.cores * NANO
    return ask_by_term(term, readings, capacity, usage_format=CpuUsageFormat.PERCENT)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("mlserver")
    predicted = await asyncio.to_thread(train, folder)
    port, *others = free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": others[0],
        "metrics_port": others[1],
        "parallel_workers": 0,
    }
    model = {
        "name": "lean",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "v0.1.0"},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    process = start_process("mlserver", [str(PEERS / "mlserver"), "start", "."], folder=folder)
    try:
        found = Server(f"http://127.0.0.1:{port}", predicted)
        await until_ready(f"{found.origin}/v2/models/lean/ready", process)
        yield found
        await found.fetcher.close()
    finally:
        await process.stop(grace_s=5)


def train(folder: Path) -> list[float]:
    """Fit a model to measurements of a machine of the sandbox; return what it says for the grid."""
    draw = random.Random(1)  # noqa: S311 - the same measurements each time
    inputs = [
        [draw.uniform(0, 100), draw.uniform(18, 30), draw.uniform(0, 0.1)] for _ in range(600)
    ]
    watts = [LEAN.watts(cpu / 100, inlet) for cpu, inlet, _ in inputs]
    term = EndpointTerm(type="V2InferenceProtocol", endpoint="http://127.0.0.1:1/v2/models/lean")
    asked = question_for(term).inputs
    given = json.dumps({"inputs": inputs, "watts": watts, "asked": asked})
    command = [str(PEERS / "python"), str(Path(__file__).with_name("training.py")), str(folder)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    predicted: list[float] = json.loads(done.stdout)
    return predicted


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for it in sockets:
            it.bind(("127.0.0.1", 0))
        return [it.getsockname()[1] for it in sockets]
    finally:
        for it in sockets:
            it.close()


async def until_ready(url: str, process: ManagedProcess) -> None:
    async with asyncio.timeout(READY_DEADLINE_S), aiohttp.ClientSession() as session:
        while True:
            process.check_alive()
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


async def test_curve_is_what_the_model_says(server: Server) -> None:
    term = server.term("lean")

    curve = await server.asker.curve(question_for(term), term, "")

    assert curve is not None
    assert (curve.cores[0], curve.cores[-1], curve.gaps) == (0.0, LEAN.cores, ())
    assert curve.watts == pytest.approx(server.predicted, abs=0.5)
    # The trees know the machine to a few percent, so these are its watts and no others.
    truth = [LEAN.watts(cores / LEAN.cores, 24.5) for cores in curve.cores]
    assert curve.watts == pytest.approx(truth, rel=0.05)


async def test_unknown_model_is_a_failure_in_words(server: Server) -> None:
    term = server.term("nobody")

    with pytest.raises(FetchError, match=r"nobody v0\.1\.0 at http://127.0.0.1:\d+: .*404"):
        await server.asker.curve(question_for(term), term, "")
