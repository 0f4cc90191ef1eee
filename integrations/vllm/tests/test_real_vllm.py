"""A real vLLM on CPU: base and adapters by name, against our own engine and plain PEFT."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from driving import NEAR, reference_logits
from trunkline.api import Platform, open
from trunkline.contracts import Template
from trunkline.inference.request import Request
from trunkline.refs import Ref
from trunkline_vllm.probes import record_probes
from workbench import make_artifact

pytestmark = [pytest.mark.vllm, pytest.mark.real]

PROGRAM = Path(__file__).parents[1] / ".venv" / "bin" / "vllm"
COUNT = 16
NEW = 24
START_SECONDS = 900
PLAIN, CHAT = Template(prompt="Q: {text}\nA:"), Template(chat=True, system="Answer briefly.")
QUESTION = "What is the capital of France?"
NAMES = [f"toy/adapter-{number}" for number in range(COUNT)]


@dataclass
class Server:
    """A vLLM server, and the workspace that it serves.

    Attributes:
        expected: model → the prompt's ids and the tokens of our own engine.
    """

    url: str
    platform: Platform
    expected: dict[str, tuple[list[int], list[int]]]

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return httpx2.post(self.url + path, json=body, timeout=300)

    def complete(self, model: str, **fields: Any) -> httpx2.Response:
        body = {"prompt": QUESTION, "temperature": 0, "max_tokens": NEW, "return_token_ids": True}
        return self.post("/v1/completions", model=model, **body | fields)


@pytest.fixture(scope="module")
def base_folder() -> Path:
    from trunkline.bases import DEFAULT_BASE, pull

    return pull(DEFAULT_BASE).folder


def publish(platform: Platform, folder: Path, base: Path, name: str, seed: int) -> None:
    """Publish a random adapter that changes the base without breaking it."""
    from trunkline.bases import describe

    lora = {"r": (2, 4, 8)[seed % 3], "lora_alpha": 2}
    template = CHAT if seed % 2 else PLAIN
    make_artifact(folder, base, "generation", seed=seed, template=template, **lora)
    info = describe(str(base))
    platform.registry.sources.record_base(
        digest=info.digest, name=info.name, source=info.source, architecture=info.architecture,
        parameters=info.parameters, dtype=info.dtype,
    )  # fmt: skip
    platform.store.publish(
        folder, Ref.parse(name), task="generation", run=None, base_digest=info.digest
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Iterator[Server]:
    """A server of :data:`NAMES`, of two versions of ``toy/moved``, and of ``toy/tampered``."""
    room = tmp_path_factory.mktemp("vllm")
    (room / "site").mkdir()
    platform = open(room / "site", no_plugins=True)
    moved = ["toy/moved", "toy/moved", "toy/tampered"]
    for seed, name in enumerate([*NAMES, *moved]):
        publish(platform, room / str(seed), base_folder, name, seed)
    refs = [*(f"{name}@1" for name in NAMES), "toy/moved@1", "toy/moved@2", "toy/tampered@1"]
    for ref in refs:
        assert record_probes(platform, ref, 2) > 0
    expected = own_answers(platform)
    platform.engine.close()
    platform.registry.aliases.set(Ref("toy", "moved", "1"), "champion")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (
        f"serve {base_folder} --host 127.0.0.1 --port {port} --dtype float32 --max-model-len 2048 "
        "--enable-lora --max-loras 16 --max-lora-rank 8 --max-num-seqs 16 "
        "--middleware trunkline_vllm.middleware.TrunklineMiddleware"
    ).split()
    environment = os.environ | {
        "TRUNKLINE_WORKSPACE": str(room / "site"),
        "TRUNKLINE_VLLM_CACHE": str(room / "cache"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_NO_USAGE_STATS": "1",
        "GOMP_SPINCOUNT": "200",  # the test computes beside it
        "KMP_BLOCKTIME": "0",
    }
    log = room / "vllm.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(PROGRAM), *arguments], env=environment, stdout=output, stderr=output
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_up(process, url, log)
            yield Server(url, platform, expected)
        finally:
            process.terminate()
            process.wait(60)
    platform.registry.close()


def own_answers(platform: Platform) -> dict[str, tuple[list[int], list[int]]]:
    """What our own engine answers, with the prompts that it reads."""
    from trunkline.data.encode import encode_prompt, encode_raw

    tokenizer = platform.engine.base.tokenizer
    requests = [
        Request(name, QUESTION, max_new_tokens=NEW, logprobs=0, ignore_eos=True) for name in NAMES
    ]
    base = Request(None, QUESTION, raw=True, max_new_tokens=NEW, logprobs=0, ignore_eos=True)
    prompts = [
        encode_prompt(QUESTION, CHAT if seed % 2 else PLAIN, tokenizer).ids for seed in range(COUNT)
    ]
    answers = platform.run([*requests, base])
    tokens = [[score.id for score in answer.choices[0].scores] for answer in answers]
    prompts.append(encode_raw(QUESTION, tokenizer).ids)
    return dict(zip([*NAMES, "base"], zip(prompts, tokens, strict=True), strict=True))


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


def test_sixteen_adapters_and_the_base_answer_as_our_engine_and_as_peft(
    server: Server, base_folder: Path
) -> None:
    """All at once, in one batch; a token may differ only where PEFT finds two nearly equal."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    models = [*NAMES, "base"]
    with ThreadPoolExecutor(len(models)) as threads:
        responses = list(threads.map(lambda name: server.complete(name, ignore_eos=True), models))
    assert [one.status_code for one in responses] == [200] * len(models), responses[0].text
    names = [one.headers["x-trunkline-version"] for one in responses]
    assert names == [*(f"{name}@1" for name in NAMES), "base"]
    plain = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    same = 0
    for name, response in zip(models, responses, strict=True):
        prompt, own = server.expected[name]
        actual = response.json()["choices"][0]["token_ids"]
        assert len(actual) == NEW
        reference: Any = plain
        if name != "base":
            artifact = server.platform.resolve(name).artifact()
            assert artifact is not None
            reference = PeftModel.from_pretrained(plain, artifact.folder).eval()
        for tokens in (actual, own):
            for token, logits in zip(
                tokens, reference_logits(reference, prompt, tokens), strict=True
            ):
                best, second = logits.topk(2).values.tolist()
                assert token == int(logits.argmax()) or best - second <= NEAR
        same += actual == own
        if name != "base":
            plain = reference.unload()
    assert same >= len(models) - 1
    assert len({tuple(one.json()["choices"][0]["token_ids"]) for one in responses}) > COUNT // 2


def test_promotion_takes_effect_with_the_next_request(server: Server) -> None:
    def version() -> str:
        return server.complete("toy/moved", max_tokens=1).headers["x-trunkline-version"]

    assert version() == "toy/moved@1"
    server.platform.registry.aliases.set(Ref("toy", "moved", "2"), "champion")
    assert version() == "toy/moved@2"


def test_chat_and_stream_are_answered_in_the_template(server: Server) -> None:
    name = NAMES[1]
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 8}
    chat = server.post("/v1/chat/completions", **body, return_token_ids=True).json()
    assert chat["prompt_token_ids"] == server.expected[name][0]
    assert chat["choices"][0]["token_ids"] == server.expected[name][1][:8]
    stream = server.post("/v1/chat/completions", **body, stream=True)
    assert stream.text.endswith("data: [DONE]\n\n")
    assert '"usage":{' not in stream.text
    line = server.platform.registry.requests.get(stream.headers["x-request-id"])
    assert (line.version, line.new_tokens, line.status) == (f"{name}@1", 8, 200)


def test_tampered_artifact_is_refused(server: Server) -> None:
    version = server.platform.resolve("toy/tampered").version
    weights = server.platform.workspace.adapters / version.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    response = server.complete("toy/tampered")
    assert response.status_code == 422
    assert "not what the registry recorded" in response.text


def test_unknown_name_and_loading_routes_are_refused(server: Server) -> None:
    assert server.complete("toy/nothing").status_code == 404
    adapter = {"lora_name": "x", "lora_path": "/"}
    assert server.post("/v1/load_lora_adapter", **adapter).status_code == 403


def test_cached_versions_go_on_without_the_registry(server: Server) -> None:
    file = server.platform.workspace.root / "registry.db"
    assert server.complete(NAMES[0], max_tokens=1).status_code == 200
    file.rename(file.with_suffix(".away"))
    try:
        response = server.complete(NAMES[0], max_tokens=1)
        assert response.headers["x-trunkline-version"] == f"{NAMES[0]}@1"
        assert server.complete("toy/nothing").status_code == 503
    finally:
        file.with_suffix(".away").rename(file)
    assert server.complete(NAMES[0], max_tokens=1).status_code == 200
    assert server.platform.registry.requests.get(response.headers["x-request-id"]).status == 200
