"""Read the folder of a PEFT adapter, explain a folder that is not one, and compare tokenizers.

Only the configuration and the header of the weights are read here. An imported adapter is served
with the base's tokenizer and chat template; the folder's own tokenizer files are only read to say
where they differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import CONFIG, MANIFEST, WEIGHTS
from trunkline.adapters.config import adapted_module, is_head
from trunkline.errors import IntegrityError, NotFoundError, UsageError, reason_of
from trunkline.files import (
    REPAIR,
    TensorInfo,
    brief_repr,
    read_json_object,
    read_safetensors_header,
)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TRAINING_FILES = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args).*")
"""Files of a trainer's checkpoint that have no weights."""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z")
_SHARD = re.compile(r"(adapter_model|model)-\d+-of-\d+\.safetensors", re.ASCII)
_MLX_WEIGHTS = ("adapters.safetensors", "adapters.npz")
_MLX_KEYS = ("lora_parameters", "fine_tune_type", "lora_layers")
_FULL_MODELS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_LFS = b"version https://git-lfs.github.com/spec/"
_DEPTH = 3
_MAX_FOLDERS = 2000
_SHOWN = 5

_VISION_LAYER = re.compile(
    r"(?:^|\.)(?:patch_embed(?:ding)?s?|patch_embeddings|vision_(?:model|tower)|image_encoder"
    r"|conv_(?:dw|pw|pwl|stem|head)|vit|deit|beit|dinov2|swinv?2?|convnextv?2?|resnet|timm_model)"
    r"(?:\.|$)"
)
_VISION_BASE = re.compile(
    r"(?i)efficientnet|resnet|convnext|mobilenet|mobilevit|(?:^|[/_-])(?:vit|deit|beit|swinv?2?|"
    r"dinov?[23]?|siglip2?)(?:[/_-]|$)"
)

_SAVED = "Name the folder that PEFT's save_pretrained wrote."
_MLX_HINT = (
    "Convert it: lora_A.weight is lora_a transposed, lora_B.weight is lora_b transposed, r is the "
    "rank and lora_alpha is scale × rank. Or fuse it with mlx_lm.fuse and use the result as a base."
)


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """The configuration as it is in the file, and the header of the weights."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def adapted(self) -> frozenset[str]:
        """Names of the modules that have a ``lora_A``."""
        return frozenset(
            module for name in self.tensors if (module := adapted_module(name)) is not None
        )

    @property
    def head(self) -> TensorInfo | None:
        """The head's matrix ``[outputs, hidden]``, if there is one."""
        return next((info for name, info in self.tensors.items() if is_head(name)), None)

    @property
    def name(self) -> str:
        """The name of the folder; bytes that are not UTF-8 are replaced."""
        return self.folder.resolve().name.encode("utf-8", "replace").decode("utf-8")

    @property
    def named_base(self) -> str | None:
        """The base that the configuration names: a repository, or a path on another machine."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def check_reads_text(self) -> None:
        """Refuse an adapter for pictures: the folder does not say how they are prepared.

        Raises:
            UsageError: its layers, its base or Trunkline's own manifest are of pictures.
        """
        manifest = self.folder / MANIFEST
        own: Mapping[str, Any] = {}
        if manifest.is_file():
            with suppress(OSError, IntegrityError):
                own = read_json_object(manifest)
        module = next((name for name in sorted(self.adapted) if _VISION_LAYER.search(name)), None)
        if own.get("preprocessing") is not None:
            reason = f"{MANIFEST} describes how pictures are prepared"
        elif _VISION_BASE.search(self.named_base or ""):
            reason = f"its base is {brief_repr(self.named_base)}"
        elif module is not None:
            reason = f"it adapts {brief_repr(module)}"
        else:
            return
        raise UsageError(
            f"The adapter in {self.folder} is for pictures: {reason}; PEFT folders are imported "
            "for text only.",
            "Write an archive where it was trained, `trunkline adapters export NAME FILE.tar`, and "
            "import that. Or train it here: `trunkline train --data FOLDER --name NAME`.",
        )


def read_peft_folder(folder: Path) -> PeftFolder:
    """Read the configuration and the header of the weights.

    Raises:
        NotFoundError: the folder does not exist.
        IntegrityError: a file is missing, malformed, a pickle, or of another tool.
    """
    if not folder.is_dir():
        if folder.is_file():
            archive = folder.suffix.lower() in _ARCHIVES
            raise NotFoundError(
                f"{brief_repr(str(folder))} is a file, not the folder of an adapter.",
                f"{'Unpack it, then name' if archive else 'Name'} the folder that has {CONFIG} and "
                f"{WEIGHTS}.",
            )
        raise NotFoundError(
            f"There is no folder {brief_repr(str(folder))}.",
            f"Name the folder that has {CONFIG} and {WEIGHTS}.",
        )
    try:
        _check_mlx_weights(folder)
        if not (folder / CONFIG).is_file():
            raise _no_config(folder)
        if not (folder / WEIGHTS).is_file():
            raise _no_weights(folder)
        config = read_json_object(folder / CONFIG)
        if "peft_type" not in config and any(key in config for key in _MLX_KEYS):
            raise _mlx(folder, CONFIG)
        _check_lfs(folder / WEIGHTS)
        return PeftFolder(folder, config, read_safetensors_header(folder / WEIGHTS))
    except OSError as error:
        raise IntegrityError(
            f"The adapter in {folder} can't be read: {reason_of(error)}.", REPAIR
        ) from error


def folders_beneath(folder: Path) -> list[str]:
    """Folders beneath that hold an adapter, relative, with their numbers in order."""
    names = [
        path.parent.relative_to(folder).as_posix()
        for path in _files_beneath(folder)
        if path.name == CONFIG and path.parent != folder
    ]
    return sorted(names, key=natural_order)


def list_names(names: list[str]) -> str:
    """The last few names, the newest checkpoints among them, and how many more there are."""
    shown = ", ".join(brief_repr(name) for name in names[-_SHOWN:])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def natural_order(text: str) -> list[tuple[int, str]]:
    """A sort key that puts ``checkpoint-500`` before ``checkpoint-1000``."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part)
        for part in re.split(r"(\d{1,18})", text)
    ]


def _files_beneath(folder: Path) -> Iterator[Path]:
    """Files at most some levels down; links to folders are not followed."""
    level = [folder]
    seen = 0
    for _ in range(_DEPTH + 1):
        deeper: list[Path] = []
        for parent in level:
            seen += 1
            if seen > _MAX_FOLDERS:
                return
            try:
                entries = sorted(parent.iterdir())
            except OSError:
                continue
            yield from (path for path in entries if path.is_file())
            deeper += [path for path in entries if path.is_dir() and not path.is_symlink()]
        level = deeper


def _check_mlx_weights(folder: Path) -> None:
    if (folder / WEIGHTS).is_file():
        return
    for name in _MLX_WEIGHTS:
        if (folder / name).is_file():
            raise _mlx(folder, name)


def _mlx(folder: Path, name: str) -> IntegrityError:
    return IntegrityError(f"{folder} has an adapter of MLX ({name}), not of PEFT.", _MLX_HINT)


def _check_lfs(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise IntegrityError(
                f"{path} is a pointer of Git LFS; the weights themselves are not in this copy.",
                "Fetch them with `git lfs pull` in the copied repository.",
            )


def _no_config(folder: Path) -> IntegrityError:
    beneath = folders_beneath(folder)
    if beneath:
        return IntegrityError(
            f"{folder} has no {CONFIG}, but {_folders(beneath)} beneath it: {list_names(beneath)}.",
            f"Import one of them, for example {folder / beneath[-1]}",
        )
    names = [path.name for path in folder.iterdir()]
    gguf = next((name for name in sorted(names) if name.endswith(".gguf")), None)
    if gguf:
        return IntegrityError(
            f"{folder} has no {CONFIG}; {brief_repr(gguf)} is in the format of llama.cpp.",
            "Name the PEFT folder that the file was made from.",
        )
    if any(name in _FULL_MODELS or _SHARD.fullmatch(name) for name in names):
        return IntegrityError(
            f"{folder} has a full model, not an adapter: it has no {CONFIG}.",
            "Name the adapter's folder from before it was merged; a full model is a base: --base.",
        )
    archive = next((name for name in sorted(names) if name.lower().endswith(_ARCHIVES)), None)
    if archive:
        return IntegrityError(
            f"{folder} has no {CONFIG}, but the archive {brief_repr(archive)}.",
            f"Unpack it, then name the folder that has {CONFIG}.",
        )
    return IntegrityError(f"{folder} has no {CONFIG}, so it is not a PEFT adapter.", _SAVED)


def _no_weights(folder: Path) -> IntegrityError:
    names = sorted(path.name for path in folder.iterdir())
    shard = next((name for name in names if _SHARD.fullmatch(name)), None)
    if shard:
        return IntegrityError(
            f"{folder} has its weights in several files, such as {shard}.",
            "Save it in one file, with a larger max_shard_size, or join the files with "
            "safetensors: load_file each, then save_file all tensors as " + WEIGHTS + ".",
        )
    pickles = [
        name for name in names if name.endswith(_PICKLES) and not _TRAINING_FILES.fullmatch(name)
    ]
    first = next((name for name in pickles if name.startswith("adapter_model")), None)
    beneath = [name for name in folders_beneath(folder) if (folder / name / WEIGHTS).is_file()]
    if not first and beneath:
        return IntegrityError(
            f"{folder} has no {WEIGHTS}, but {_folders(beneath)} beneath it: "
            f"{list_names(beneath)}.",
            f"Import one of them, for example {folder / beneath[-1]}",
        )
    if first or pickles:
        return IntegrityError(
            f"{folder} has its weights as a pickle ({first or pickles[0]}), which can run code "
            "when it is read; it was not opened.",
            "Save the adapter as safetensors on a machine where you trust its origin.",
        )
    return IntegrityError(f"{folder} has no {WEIGHTS}.", _SAVED)


def _folders(names: list[str]) -> str:
    return "there is an adapter" if len(names) == 1 else f"there are {len(names)} adapters"


# --------------------------------------------------------------------------------- tokenizer files

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"
CHAT_TEMPLATES = "additional_chat_templates"
SPECIAL_TOKENS = "special_tokens_map.json"
FILES = (
    TOKENIZER_CONFIG, TOKENIZER, ADDED_TOKENS, SPECIAL_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON,
)  # fmt: skip
"""The files that are read, where a folder has them."""

_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder's tokenizer files say.

    Attributes:
        chat_template: of a conversation; None if there is none.
        added: token → id of the tokens that are marked as added.
        vocabulary: token → id of all others, if the folder has them.
        end: the token that ends a text.
        unreadable: names of the files that could not be read.
    """

    chat_template: str | None
    added: Mapping[str, int]
    vocabulary: Mapping[str, int]
    end: str | None
    unreadable: tuple[str, ...]


def tokenizer_notes(folder: Path, base: Path, *, chat: bool) -> list[str]:
    """Sentences on what the folder has and what is not used.

    Args:
        folder: of the adapter.
        base: folder of the base.
        chat: whether the adapter is served with the base's chat template.
    """
    if not any((folder / name).exists() for name in (*FILES, CHAT_TEMPLATES)):
        return []
    own, served = read_tokenizer_files(folder), read_tokenizer_files(base)
    notes = [f"{name} in the folder can't be read; it is not used." for name in own.unreadable]
    notes += _chat_notes(own.chat_template, served.chat_template, chat)
    notes += _token_notes(own, served)
    return notes


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer files; a file that is not as expected counts as absent."""
    unreadable: list[str] = []
    config = _read(folder / TOKENIZER_CONFIG, unreadable)
    tokenizer = _read(folder / TOKENIZER, unreadable)
    special = _read(folder / SPECIAL_TOKENS, unreadable)
    return TokenizerFiles(
        chat_template=_chat_template(folder, config, unreadable),
        added=_added_tokens(config, tokenizer, _read(folder / ADDED_TOKENS, unreadable)),
        vocabulary=_vocabulary(tokenizer),
        end=_content(config.get("eos_token")) or _content(special.get("eos_token")),
        unreadable=tuple(unreadable),
    )


def _read(path: Path, unreadable: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path, max_bytes=_MAX_BYTES, allow_nan=True)
    except (IntegrityError, OSError):
        unreadable.append(path.name)
        return {}


def _chat_template(folder: Path, config: Mapping[str, Any], unreadable: list[str]) -> str | None:
    """The template in the order in which transformers looks: its own file first.

    Of several templates it is the default, or else the first.
    """
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            if path.stat().st_size <= _MAX_BYTES:
                return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            pass
        unreadable.append(path.name)
    value = config.get("chat_template")
    if value is None:
        value = _read(folder / CHAT_TEMPLATE_JSON, unreadable).get("chat_template")
    if isinstance(value, list):  # several, by name
        entries = [one for one in value if isinstance(one, dict)]
        value = {str(one.get("name")): one.get("template") for one in entries}
    if isinstance(value, dict):
        value = value.get("default", next(iter(value.values()), None))
    if value is None:
        value = _additional_template(folder, unreadable)
    return value if isinstance(value, str) else None


def _additional_template(folder: Path, unreadable: list[str]) -> str | None:
    """The first template of a folder that has only templates for special uses."""
    path = min((folder / CHAT_TEMPLATES).glob("*.jinja"), default=None)
    if path is None or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, UnicodeDecodeError):
        unreadable.append(f"{CHAT_TEMPLATES}/{path.name}")
        return None


def _added_tokens(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], listed: Mapping[str, Any]
) -> dict[str, int]:
    added = {token: number for token, number in listed.items() if type(number) is int}
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = _content(token)
        if text is not None and number.isascii() and number.isdigit():
            added[text] = int(number[:18])
    entries = tokenizer.get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        text = _content(entry)
        if text is not None and type(entry.get("id")) is int:
            added[text] = entry["id"]
    return added


def _content(token: Any) -> str | None:
    """A token's text, from either form in which transformers writes it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {token: number for token, number in vocabulary.items() if type(number) is int}
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        return {
            entry[0]: number
            for number, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry and isinstance(entry[0], str)
        }
    return {}


def _chat_notes(own: str | None, served: str | None, chat: bool) -> list[str]:
    if own is None:
        return []
    if served is None:
        return ["The folder's chat template is not used; the base has none."]
    if own.strip() == served.strip():
        if chat:
            return []
        return ["The folder has the base's chat template, which is used only with --chat."]
    line, mine, theirs = _first_difference(own, served)
    instead = "the base's is used" if chat else "no chat template is used without --chat"
    return [
        f"The folder's chat template is not used: {instead}. They differ in line {line}: "
        f"{brief_repr(mine)} in the folder, {brief_repr(theirs)} in the base."
    ]


def _first_difference(own: str, served: str) -> tuple[int, str, str]:
    mine, theirs = own.strip().splitlines(), served.strip().splitlines()
    count = max(len(mine), len(theirs))
    mine += [""] * (count - len(mine))
    theirs += [""] * (count - len(theirs))
    return next(
        (number, one, other)
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True), 1)
        if one != other
    )


def _token_notes(own: TokenizerFiles, served: TokenizerFiles) -> list[str]:
    notes = []
    known = {**served.vocabulary, **served.added}
    if known:
        lacking = sorted(token for token in own.added if token not in known)
        moved = sorted(
            token for token, number in own.added.items() if known.get(token, number) != number
        )
        if lacking:
            notes.append(
                f"The folder's tokenizer adds {_counted(lacking)} that the base lacks: "
                f"{_listed(lacking)}. They are not used: the base's tokenizer splits such text."
            )
        if moved:
            notes.append(
                f"The folder's tokenizer gives {_counted(moved)} another id than the base: "
                f"{_listed(moved)}. The base's tokenizer is used."
            )
    if own.vocabulary and served.vocabulary and own.vocabulary != served.vocabulary:
        changed = len(dict(own.vocabulary.items() ^ served.vocabulary.items()))
        notes.append(
            f"The folder's vocabulary differs from the base's in {changed:,} tokens, so it may be "
            "of another base. The base's is used."
        )
    if own.end is not None and served.end is not None and own.end != served.end:
        notes.append(
            f"The folder's tokenizer ends texts with {brief_repr(own.end)}, the base's with "
            f"{brief_repr(served.end)}. The base's is used, so an answer may not end in time."
        )
    return notes


def _counted(tokens: list[str]) -> str:
    return "1 token" if len(tokens) == 1 else f"{len(tokens):,} tokens"


def _listed(tokens: list[str]) -> str:
    shown = ", ".join(brief_repr(token) for token in tokens[:_SHOWN])
    return shown if len(tokens) <= _SHOWN else f"{shown} and {len(tokens) - _SHOWN} more"
