"""Real servers with many adapters, asked over HTTP: what the simulator is compared with."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from made import make_adapter
from streams import Arrival, Course

from fleet.simulator import Policy
from trunkline.inference.settings import EngineSettings

DOMAIN = "fleet"
_START_SECONDS = 180.0


def publish(workspace: Path, adapters: int, rank: int) -> None:
    """Make a workspace with the versions ``fleet/adapter-0@1`` and so on, of random weights."""
    from made import BASE, config_of

    import trunkline
    from trunkline.bases import describe
    from trunkline.refs import Ref

    info, config = describe(BASE), config_of(None)
    platform = trunkline.open(workspace, base=BASE, no_plugins=True)
    platform.registry.sources.record_base(
        digest=info.digest, name=info.name, source=info.source, architecture=info.architecture,
        parameters=info.parameters, dtype=info.dtype, modality="text",
    )  # fmt: skip
    for number in range(adapters):
        folder = make_adapter(
            workspace / "made" / str(number), config, info.digest, seed=number, rank=rank
        )
        ref = Ref(DOMAIN, f"adapter-{number}")
        platform.store.publish(folder, ref, task="generation", run=None, base_digest=info.digest)
    platform.registry.close()


class Servers:
    """Replicas of one workspace, each a process with one thread for its steps."""

    def __init__(self, workspace: Path, replicas: int, settings: EngineSettings) -> None:
        self._stack = ExitStack()
        self.addresses: dict[str, str] = {}
        try:
            for number in range(replicas):
                self.addresses[f"replica-{number}"] = self._start(workspace, settings)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, workspace: Path, settings: EngineSettings) -> str:
        command = [
            sys.executable, "-m", "trunkline", "--workspace", str(workspace), "--no-plugins",
            "serve", "--port", "0", "--slots", str(settings.slots),
            "--adapter-mib", str(settings.adapter_mib), "--kv-mib", str(settings.kv_mib),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        address = next(
            part.rstrip(";")
            for line in process.stdout if "Listening on " in line
            for part in line.split() if part.startswith("http://")
        )  # fmt: skip
        until = time.monotonic() + _START_SECONDS
        while httpx2.get(f"{address}/ready").status_code != 200:
            if time.monotonic() > until:
                raise TimeoutError(f"{address} does not load its base.")
            time.sleep(0.5)
        return address

    def serve(self, stream: Sequence[Arrival], new_tokens: int, policy: Policy) -> list[Course]:
        """Send each request when it is due to the replica that the policy chooses."""
        return asyncio.run(self._serve(stream, new_tokens, policy))

    async def _serve(
        self, stream: Sequence[Arrival], new_tokens: int, policy: Policy
    ) -> list[Course]:
        loads: dict[str, float] = dict.fromkeys(self.addresses, 0.0)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx2.AsyncClient(timeout=600, limits=limits) as client:
            start = time.perf_counter()

            async def ask(one: Arrival) -> Course:
                await asyncio.sleep(max(0.0, start + one.due - time.perf_counter()))
                name = policy(f"adapter-{one.adapter}", loads)
                loads[name] += 1
                first = 0.0
                body: dict[str, Any] = {
                    "model": f"{DOMAIN}/adapter-{one.adapter}@1", "prompt": one.ids,
                    "max_tokens": new_tokens, "ignore_eos": True, "temperature": 0, "stream": True,
                }  # fmt: skip
                address = f"{self.addresses[name]}/v1/completions"
                async with client.stream("POST", address, json=body) as response:
                    if response.status_code != 200:
                        await response.aread()
                        raise RuntimeError(response.text)
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            first = first or time.perf_counter() - start
                            if '"error"' in line[:20]:
                                raise RuntimeError(line)
                loads[name] -= 1
                return Course(first - one.due, time.perf_counter() - start)

            return await asyncio.gather(*map(ask, stream))
