"""The registry as the rest of Trunkline sees it.

Owns: nothing of its own; it joins the parts, each of which holds the queries of its subject.
Must not know: torch, artifacts' files, or how anything is trained or evaluated.
"""

from __future__ import annotations

from trunkline.registry.aliases import Aliases
from trunkline.registry.audit import Audit
from trunkline.registry.deployments import Deployments
from trunkline.registry.evaluations import Evaluations
from trunkline.registry.finding import Finding
from trunkline.registry.keys import Keys
from trunkline.registry.lineage import Lineages
from trunkline.registry.moving import Moving
from trunkline.registry.origins import Origins
from trunkline.registry.removal import Removal
from trunkline.registry.requests import Requests
from trunkline.registry.restoring import Restoring
from trunkline.registry.runs import Runs
from trunkline.registry.sources import Sources
from trunkline.registry.tags import Tags
from trunkline.registry.versions import Versions


class Registry(
    Lineages,
    Finding,
    Tags,
    Sources,
    Runs,
    Versions,
    Aliases,
    Evaluations,
    Keys,
    Requests,
    Audit,
    Deployments,
    Removal,
    Moving,
    Restoring,
    Origins,
):
    """What was used, run, published, evaluated, moved, allowed and asked, in one database.

    ``Registry.open(url)`` gives one. Every method is one transaction and gives frozen records;
    each change of state leaves an event. Use it as a context manager, or close it.
    """
