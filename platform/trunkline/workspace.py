"""The workspace: paths of registry, adapters and runs, the user's cache, and ``trunkline.toml``.

``trunkline.toml`` is in the same folder as ``registry.db`` and applies to the workspace::

    [store]
    url = "s3://models/trunkline"        # default: the folder adapters/

    [store.options]                      # passed to fsspec unchanged
    endpoint_url = "https://s3.example.org"

    [gate]                               # only ever tightens a recipe's own gate
    beats_baseline = true
    beats_champion = false
    champion_margin = 0.01
    slices_at_least = 0.5
    two_persons = true

    [signatures]
    required = true
    keys = ["keys/release.pub"]          # relative to the workspace

    [plugins.owners]                     # domain -> the distribution that it belongs to
    law = "trunkline-law"

    [serve]                              # options of `trunkline serve`; variables win over them
    host = "0.0.0.0"
    kv_mib = 2048
    preload = ["medical/icd10-chapter"]

    [serve.limits]
    request_timeout = 60
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunkline.errors import UsageError
from trunkline.redaction import (
    HIDDEN,
    decoded_url,
    redact_url,
    remember_options,
    remember_url,
)
from trunkline.refs import Ref, shown

CONFIGURATION_FILE = "trunkline.toml"

_BUCKET_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "oss"})
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?:/[^/]|[^/\\]*@)")

_TABLES: dict[str, dict[str, tuple[type, ...]]] = {
    "store": {"url": (str,), "options": (dict,)},
    "gate": {
        "beats_baseline": (bool,),
        "beats_champion": (bool,),
        "champion_margin": (int, float),
        "slices_at_least": (int, float),
        "two_persons": (bool,),
    },
    "signatures": {"required": (bool,), "keys": (list,)},
    "plugins": {"owners": (dict,)},
    "serve": {
        "host": (str,),
        "port": (int,),
        "rows": (int,),
        "kv_mib": (int,),
        "adapter_mib": (int,),
        "slots": (int,),
        "chunk_tokens": (int,),
        "queue": (int,),
        "no_prefix_cache": (bool,),
        "no_request_log": (bool,),
        "log_text": (bool,),
        "open_metrics": (bool,),
        "cors_origins": (list,),
        "preload": (list,),
        "limits": (dict,),
    },
}


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where artifacts are stored; ``url`` is None for the workspace's own ``adapters/``."""

    url: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Conditions added to the gate of every recipe; see :class:`contracts.Gate`."""

    beats_baseline: bool = False
    beats_champion: bool = False
    champion_margin: float | None = None
    slices_at_least: float | None = None
    two_persons: bool = False


@dataclass(frozen=True, slots=True)
class SignatureSettings:
    """Whether served versions must be signed, and the public keys that are accepted."""

    required: bool = False
    keys: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """Which distribution a domain belongs to, where several claim it; by domain."""

    owners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The contents of a workspace's ``trunkline.toml``.

    Attributes:
        serve: option of ``trunkline serve`` → its value.
    """

    store: StoreSettings = StoreSettings()
    gate: GateSettings = GateSettings()
    signatures: SignatureSettings = SignatureSettings()
    plugins: PluginSettings = PluginSettings()
    serve: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Configuration:
        """Read the workspace's file; without one, everything has its default.

        ``TRUNKLINE_STORE`` overrides the store's url.

        Raises:
            UsageError: the file is not valid TOML, or has an unknown key or a wrong value.
        """
        path = root / CONFIGURATION_FILE
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            if path.is_symlink():
                raise UsageError(
                    f"The workspace's {path} is a link to a file that does not exist.",
                    "Repair the link, or move it away.",
                ) from error
            tables = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(
                f"The workspace's {path} can't be read: {error}.", "Correct it, or move it away."
            ) from error
        _check_tables(tables, path)
        store = dict(tables.get("store", {}))
        if url := os.environ.get("TRUNKLINE_STORE"):
            store["url"] = url
        if url := store.get("url"):
            store["url"] = _check_store_url(url.strip()) or None
        remember_options(store.get("options"))
        signatures = tables.get("signatures", {})
        keys = tuple(root / key for key in signatures.get("keys", ()))
        return cls(
            StoreSettings(**store),
            GateSettings(**tables.get("gate", {})),
            SignatureSettings(bool(signatures.get("required")), keys),
            PluginSettings(**tables.get("plugins", {})),
            tables.get("serve", {}),
        )


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder that contains ``registry.db`` and ``adapters/``.

    Attributes:
        root: absolute path of an existing folder.
    """

    root: Path

    @classmethod
    def locate(cls, folder: Path | str | None = None) -> Workspace:
        """Find the workspace: ``folder``, else ``TRUNKLINE_WORKSPACE``, else the current folder.

        Raises:
            UsageError: the folder does not exist, or is not a folder.
        """
        chosen = folder or os.environ.get("TRUNKLINE_WORKSPACE") or "."
        try:
            root = Path(chosen).expanduser().resolve()
            exists, is_folder = root.exists(), root.is_dir()
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"The workspace folder {shown(str(chosen))} can't be accessed: {error}.",
                "Name an existing folder with --workspace.",
            ) from error
        if not exists:
            raise UsageError(
                f"The workspace folder '{root}' does not exist.",
                f"Create it with: mkdir -p '{root}', or name another with --workspace.",
            )
        if not is_folder:
            raise UsageError(
                f"The workspace '{root}' is a file, not a folder.",
                "Name the folder that contains registry.db with --workspace.",
            )
        if "?" in str(root):
            raise UsageError(
                f"The workspace folder '{root}' has a '?' in its path, which a registry URL "
                "can't contain.",
                "Rename the folder, or name another with --workspace.",
            )
        return cls(root)

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL: ``TRUNKLINE_REGISTRY``, else the file ``registry.db`` in the root."""
        return os.environ.get("TRUNKLINE_REGISTRY") or f"sqlite:///{self.root / 'registry.db'}"

    @property
    def configuration(self) -> Configuration:
        """The contents of ``trunkline.toml``, read again on each access."""
        return Configuration.read(self.root)

    @property
    def adapters(self) -> Path:
        """The folder of the artifacts; paths in the registry are relative to it."""
        return self.root / "adapters"

    @property
    def runs(self) -> Path:
        """The folder for the files of training runs."""
        return self.root / ".trunkline" / "runs"

    def run_path(self, number: int) -> Path:
        """The folder of one run: checkpoints and logs."""
        return self.runs / str(number)

    def version_path(self, domain: str, name: str, number: int) -> Path:
        """The folder of one version's artifact.

        Raises:
            UsageError: a part is not valid in a ref, so that no path can leave ``adapters/``.
        """
        ref = Ref(domain, name, str(number))
        if ref.number is None:
            raise UsageError(
                f"{shown(str(number))} is not a version number.", "Numbers start at 1."
            )
        return self.adapters / ref.domain / ref.name / str(ref.number)


def cache_folder() -> Path:
    """The user's cache folder for converted bases and extracted data; it may not exist yet.

    ``TRUNKLINE_CACHE``, else ``trunkline`` under ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if own := os.environ.get("TRUNKLINE_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return parent / "trunkline"


def _check_store_url(url: str) -> str:
    """Refuse a store's URL that can't be read in one way only, without quoting its credentials."""
    remember_url(url)
    scheme, separator, rest = url.partition("://")
    if not separator:
        if decoded_url(url) is not None:
            raise UsageError(
                "The store's URL is percent-encoded as a whole.",
                "Write for example s3://bucket/folder, and encode single characters only.",
            )
        if _ONE_SLASH.match(url):
            raise UsageError(
                f"The store's URL {redact_url(url)!r} has no '//' after its scheme.",
                "Write for example s3://bucket/folder; a folder is written ./name.",
            )
        return url
    authority = rest.partition("/")[0]
    protocol = scheme.rpartition("::")[2]
    in_bucket = "@" in authority or (":" in authority and not authority.startswith("arn:"))
    if protocol in _BUCKET_SCHEMES and in_bucket:
        raise UsageError(
            f"The store's URL {redact_url(url)!r} has something else than a bucket's name after "
            "'//': credentials can't be part of it.",
            "Write s3://bucket/folder, and give the credentials in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), in a profile, or in [store.options].",
        )
    port = authority.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    if port and not port.isdigit() and not authority.startswith("arn:"):
        raise UsageError(
            f"The store's URL {redact_url(url)!r} has a port that is not a number.",
            "Write %3A, %2F, %3F and %23 for ':', '/', '?' and '#' in the user and the password.",
        )
    if rest.rpartition("@")[0].count("@"):
        raise UsageError(
            f"The store's URL {redact_url(url)!r} has more than one '@', so its password can't be "
            "told from its host.",
            "Write %40 for an '@' in the user, the password or the path.",
        )
    return url


def _check_tables(tables: Mapping[str, Any], path: Path) -> None:
    for table, values in tables.items():
        types = _TABLES.get(table)
        if types is None or not isinstance(values, dict):
            raise UsageError(
                f"{path} has an unknown table {table!r}.",
                f"The tables are: {', '.join(_TABLES)}.",
            )
        for key, value in values.items():
            _check_value(path, table, key, value)


def _check_value(path: Path, table: str, key: str, value: Any) -> None:
    types = _TABLES[table]
    if key not in types:
        raise UsageError(
            f"{path}: [{table}] has an unknown key {key!r}.", f"The keys are: {', '.join(types)}."
        )
    shown_value = HIDDEN if table == "store" else repr(value)
    place = f"{path}: [{table}] {key} = {shown_value}"
    if type(value) not in types[key]:
        raise UsageError(
            f"{place} has the wrong type.",
            "See docs/operators.md, docs/promotion.md, docs/moving.md and docs/plugins.md for "
            "examples.",
        )
    if key == "url" and not value.strip():
        raise UsageError(
            f"{path}: [store] url is empty.", 'Write for example url = "s3://bucket/folder".'
        )
    if key == "keys" and not all(isinstance(one, str) for one in value):
        raise UsageError(f"{place} must be a list of paths.", 'Write ["keys/release.pub"].')
    if key in ("cors_origins", "preload") and not all(isinstance(one, str) for one in value):
        raise UsageError(f"{place} must be a list of texts.", 'Write for example ["shop/tax"].')
    if key == "owners" and not all(isinstance(one, str) and one.strip() for one in value.values()):
        raise UsageError(
            f"{place} must name a distribution for each domain.", 'Write law = "trunkline-law".'
        )
    out_of_range = isinstance(value, float) and not math.isfinite(value)
    if out_of_range or (key == "champion_margin" and value < 0):
        raise UsageError(
            f"{place} is out of range.",
            "Give a finite number in the metric's unit; a margin must not be negative.",
        )
