"""The pages and actions of the console, for tests that go through all of them."""

from __future__ import annotations

PAGES = (
    "",
    "/adapters",
    "/adapters?q=task%3Dregression",
    "/adapters/toy/animals",
    "/adapters/toy/prices",
    "/adapters/toy/animals/1",
    "/adapters/toy/prices/1",
    "/adapters/toy/plurals/1",
    "/adapters/toy/animals/1/card",
    "/adapters/toy/animals/1/promote",
    "/adapters/toy/prices/2/promote",
    "/adapters/toy/prices/rollback",
    "/compare",
    "/compare?a=toy/prices@2&b=toy/prices@1",
    "/datasets",
    "/datasets/toy/animals",
    "/runs",
    "/runs/1",
    "/runs/overlay?run=2&run=4",
    "/train",
    "/train/recipes/toy/animals",
    "/playground",
    "/playground?prompt=a%20cat&model1=toy/animals&base=yes&temperature=1",
    "/requests",
    "/lineage?request=request-1",
    "/serving",
    "/audit",
    "/keys",
    "/plugins",
)
"""Below ``/console``; a key for everything sees all of them."""

ADMIN_PAGES = ("/keys",)
"""Those that need the role ``admin``."""

TESTER_PAGES = ("/playground",)
"""Those that need the role ``tester``."""

PROMOTER_PAGES = ("/train",)
"""Those that need the role ``promoter``, and everything below them."""

EVERYTHING_PAGES = ("/audit", "/keys")
"""Those that need a key for every adapter."""

PROMOTER_ACTIONS: dict[str, dict[str, str]] = {
    "/adapters/toy/prices/2/promote": {"reason": "better", "expected": "2"},
    "/adapters/toy/prices/rollback": {"reason": "worse", "expected": "2"},
    "/train/recipes/toy/animals": {"action": "start"},
    "/runs/1/stop": {},
    "/runs/1/resume": {},
    "/train/uploads": {},
}

ADMIN_ACTIONS: dict[str, dict[str, str]] = {
    "/serving/load": {"ref": "toy/animals"},
    "/serving/pin": {"digest": "sha256:0", "pinned": "yes"},
    "/serving/unload": {"digest": "sha256:0"},
    "/keys": {"owner": "mallory", "role": "admin"},
    "/keys/0aaaaaaa/revoke": {},
}
"""Path of an action → the fields of its form."""
