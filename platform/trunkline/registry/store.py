"""The registry as the rest of Trunkline sees it.

Owns: nothing of its own; it joins the parts, each of which holds the queries of its subject.
Must not know: torch, artifacts' files, or how anything is trained or judged.
"""

from __future__ import annotations

from trunkline.registry.evaluations import Evaluations
from trunkline.registry.keys import Keys
from trunkline.registry.requests import Requests
from trunkline.registry.runs import Runs
from trunkline.registry.sources import Sources
from trunkline.registry.versions import Versions


class Registry(Sources, Runs, Versions, Evaluations, Keys, Requests):
    """What was used, run, published, judged, moved, allowed and asked, in one database.

    ``Registry.open(url)`` gives one. Every method is one transaction and gives frozen records;
    each change of state leaves an event. Use it as a context manager, or close it.
    """
