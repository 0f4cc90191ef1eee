"""The plugin of vLLM: hands the adapters that requests name over to vLLM.

vLLM keeps what a resolver returns under the requested name for ever, so only immutable names are
resolved: a number or a digest. The middleware replaces aliases by them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import trunkline
from trunkline.errors import TrunklineError
from trunkline.refs import Ref
from trunkline_vllm.servable import ServedBase
from trunkline_vllm.settings import Settings
from trunkline_vllm.versions import Versions

NAME = "trunkline"

_MAX_ID = 2**31 - 1

_log = logging.getLogger("trunkline_vllm")
_shared: Versions | None = None


def share(versions: Versions) -> None:
    """Let the resolver use the versions of the middleware in this process."""
    global _shared
    _shared = versions


def register() -> None:
    """Register the resolver; vLLM calls this in each of its processes."""
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class TrunklineResolver(LoRAResolver):  # type: ignore[misc] # vLLM may not be installed
        name = NAME

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            adapter = await resolve(base_model_name, lora_name)
            return None if adapter is None else LoRARequest(**adapter)

    LoRAResolverRegistry.register_resolver(NAME, TrunklineResolver())


async def resolve(base_model_name: str, lora_name: str) -> dict[str, Any] | None:
    """The fields of vLLM's ``LoRARequest`` for a name; None if there is none, a 404 in vLLM.

    An error is logged here. The middleware, which loads a version before vLLM is called, answers it
    with its status and its hint.
    """
    try:
        ref = Ref.parse(lora_name)
        if ref.number is None and ref.digest is None:
            return None
        versions = _shared or _own_versions(base_model_name)
        version = await asyncio.to_thread(versions.resolve, lora_name)
        with versions.cache.lease(version.digest):
            artifact = await versions.load(version)
    except TrunklineError as error:
        _log.warning("vLLM gets no adapter %s: %s %s", lora_name, error.message, error.hint or "")
        return None
    return {
        "lora_name": str(version.ref),
        "lora_int_id": adapter_id(version.digest),
        "lora_path": str(artifact.folder),
    }


def adapter_id(digest: str) -> int:
    """A positive 31-bit number from a digest; vLLM replaces it by one of its own."""
    return int(digest.removeprefix("sha256:")[:8], 16) % _MAX_ID + 1


def _own_versions(base_model_name: str) -> Versions:
    """Without the middleware: no keys, no aliases, no probes, no log."""
    _log.warning(
        "The middleware is not installed: requests need no key, and probes are not checked. Start "
        "vLLM with --middleware trunkline_vllm.middleware.TrunklineMiddleware."
    )
    settings = Settings.read()
    base = ServedBase.read(settings.base or base_model_name)
    share(Versions(trunkline.open(no_plugins=True, base=base.source), settings, base))
    assert _shared is not None
    return _shared
