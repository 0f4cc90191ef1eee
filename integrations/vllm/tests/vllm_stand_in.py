"""An application that stands where vLLM stands, and asks the resolver as vLLM does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from trunkline.api import Platform
from trunkline.inference.request import Request
from trunkline_vllm import resolver
from trunkline_vllm.middleware import TrunklineMiddleware


class StandIn:
    """Answers as vLLM's routes do: it asks the resolver for an adapter, and knows it from then on.

    Attributes:
        bodies: what arrived behind the middleware, without probes.
        adapters: name → what the resolver handed over.
        wrong: answer probes with other tokens.
    """

    def __init__(self, platform: Platform, base: Path) -> None:
        self.platform = platform
        self.base = base
        self.bodies: list[dict[str, Any]] = []
        self.probes = 0
        self.adapters: dict[str, dict[str, Any]] = {}
        self.wrong = False

    def app(self) -> Starlette:
        routes = [
            Route("/health", lambda _: Response()),
            Route("/metrics", lambda _: Response("vllm:loras 1")),
            Route("/v1/load_lora_adapter", lambda _: Response("loaded"), methods=["POST"]),
            Route("/v1/embeddings", lambda _: Response("the base's"), methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        app = Starlette(routes=routes)
        app.add_middleware(TrunklineMiddleware)
        app.state.openai_serving_models = SimpleNamespace(
            base_model_paths=[SimpleNamespace(name="served-base", model_path=str(self.base))],
            lora_resolvers=[SimpleNamespace(name=resolver.NAME)],
        )
        app.state.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(model=str(self.base)),
            lora_config=SimpleNamespace(max_lora_rank=8),
        )
        return app

    async def find(self, model: str) -> Response | None:
        """vLLM's 404, unless the model is served."""
        if model == "served-base" or model in self.adapters:
            return None
        adapter = await resolver.resolve(str(self.base), model)
        if adapter is None:
            return JSONResponse({"error": {"message": "vLLM has no such model"}}, 404)
        self.adapters[model] = adapter
        return None

    async def completions(self, request: HttpRequest) -> Response:
        body = await request.json()
        if (missing := await self.find(body["model"])) is not None:
            return missing
        if body.get("return_token_ids"):
            self.probes += 1
            adapter = body["model"]
            (answer,) = self.platform.run([
                Request(
                    adapter, token_ids=tuple(body["prompt"]), max_new_tokens=body["max_tokens"],
                    logprobs=0, ignore_eos=True,
                )
            ])  # fmt: skip
            tokens = [score.id + self.wrong for score in answer.choices[0].scores]
            return JSONResponse({"choices": [{"token_ids": tokens}]})
        return self.answer(body)

    async def chat(self, request: HttpRequest) -> Response:
        body = await request.json()
        return await self.find(body["model"]) or self.answer(body)

    def answer(self, body: dict[str, Any]) -> Response:
        self.bodies.append(body)
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        if not body.get("stream"):
            return JSONResponse(
                {"model": body["model"], "choices": [{"text": "so it is"}], "usage": usage}
            )
        assert body["stream_options"]["include_usage"]

        def events() -> Iterator[str]:
            for content in (
                {"choices": [{"text": "so"}]},
                {"choices": [{"text": " it is"}]},
                {"choices": [], "usage": usage},
            ):
                text = json.dumps(content, separators=(",", ":"))
                yield f"data: {text}"[:9]
                yield f"data: {text}"[9:] + "\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


@contextmanager
def serving(stand_in: StandIn, host: str = "127.0.0.1") -> Iterator[TestClient]:
    """A client that reaches the server at an address."""
    with TestClient(stand_in.app(), base_url=f"http://{host}") as client:
        yield client
