"""Train: choose a recipe or upload a file, check the rows, set settings, estimate, start."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from trunkline.console import jobs, uploads
from trunkline.console.jobs import Job, JobState
from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.routes.runs import visible_run
from trunkline.console.uploads import Upload
from trunkline.console.view import View
from trunkline.contracts import Settings
from trunkline.data.check import check_dataset
from trunkline.data.columns import TARGETS
from trunkline.errors import NotFoundError, RefusedError, TrunklineError, UsageError
from trunkline.refs import Ref, shown
from trunkline.training.stopping import is_trained, request_stop

if TYPE_CHECKING:
    from trunkline.data.check_report import DatasetCheck
    from trunkline.training.config import RecipeConfig
    from trunkline.training.job import TrainingJob

routes = Routes()

ROLE = "promoter"
"""Without a champion the newest version answers, so training may change what users get."""

FIRST_SETTINGS = (
    "num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "r",
    "lora_alpha", "max_length", "early_stopping_patience",
)  # fmt: skip
"""Those that the form shows first; the others are folded."""

LEARNED = tuple(name for name in TARGETS if name != "messages")
"""What the column to learn may be, for an uploaded file."""

COLUMN_FIELDS = ("id", "group", "split", "candidates")
LABELS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class SettingField:
    """One field of the form.

    Attributes:
        kind: ``number``, ``integer``, ``choice``, ``flag`` or ``text``.
        value: of the form, or the recipe's.
        default: the recipe's.
    """

    name: str
    kind: Literal["number", "integer", "choice", "flag", "text"]
    value: str
    default: str
    help: str
    least: float | None
    most: float | None
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """What is trained: a plugin's recipe, or a recipe for an uploaded file.

    Attributes:
        config: None for a plugin's recipe.
        arguments: of ``trunkline train`` for it.
    """

    adapter: str
    config: RecipeConfig | None
    arguments: tuple[str, ...]

    @property
    def recipe(self) -> str | RecipeConfig:
        """The argument of ``Platform.train``."""
        return self.config or self.adapter


# ------------------------------------------------------------------------------------ choosing


@routes.get("/train", role=ROLE)
def train(view: View) -> Page:
    """The recipes, the form for a file, and the trainings that the console started."""
    recipes = [one for one in view.platform.catalog.recipes() if view.access.may_use(one.name)]
    states = [one for one in jobs.newest(view.platform) if view.access.may_use(one.job.adapter)]
    return Page(
        "train.html",
        N_("Train"),
        {
            "recipes": [
                {name: getattr(one, name) for name in ("name", "task", "description", "dataset")}
                for one in recipes
            ],
            "jobs": [_plain(one) for one in states],
        },
        {"suffixes": ",".join(uploads.SUFFIXES), "most": uploads.MAX_BYTES},
        command="trunkline recipes list",
        place="train",
    )


@routes.post("/train/uploads", role=ROLE, upload_bytes=uploads.MAX_BYTES)
def upload(view: View) -> Redirect:
    """Store a file; the next page asks what its columns mean."""
    if view.file is None:
        raise UsageError(N_("No file was chosen."), N_("Choose a file with rows."))
    if len(view.file.content) > uploads.MAX_BYTES:
        raise UsageError(
            f"The file is larger than {uploads.MAX_BYTES:,} bytes.",
            "Train it with: trunkline train --data FILE.",
        )
    kept = uploads.keep(view.platform.workspace, view.file.name, view.file.content, view.access)
    return Redirect(
        f"/train/uploads/{kept.id}",
        {"upload": kept.id, "file": kept.file.name, "columns": kept.columns},
    )


# ----------------------------------------------------------------------------------- the forms


@routes.get("/train/recipes/{domain}/{name}", role=ROLE)
def recipe_form(view: View) -> Page:
    """The settings of a plugin's recipe."""
    return _form(view, _plugin_source(view), view.query)


@routes.post("/train/recipes/{domain}/{name}", role=ROLE)
def recipe_action(view: View) -> Page | Redirect:
    """Check the rows, estimate the cost or start, as the button says."""
    return _act(view, _plugin_source(view))


@routes.get("/train/uploads/{id}", role=ROLE)
def upload_form(view: View) -> Page:
    """What the columns of an uploaded file mean, and the settings."""
    return _form(view, None, view.query, uploaded=_upload(view))


@routes.post("/train/uploads/{id}", role=ROLE)
def upload_action(view: View) -> Page | Redirect:
    """As for a recipe, with the columns of the form."""
    uploaded = _upload(view)
    try:
        source = _own_source(view, uploaded)
        view.platform.training_job(source.recipe, {})
    except TrunklineError as error:
        return _form(view, None, view.form, uploaded=uploaded, error=error)
    return _act(view, source, uploaded)


def _act(view: View, source: Source, uploaded: Upload | None = None) -> Page | Redirect:
    form = view.form
    try:
        settings = _changed(form, _fields_of(view, source, {}))
        job = view.platform.training_job(source.recipe, settings)
        action = form.get("action", "")
        if action == "check":
            checked = _check(view, job)
            return _form(view, source, form, uploaded=uploaded, check=checked)
        if action not in ("plan", "start"):
            raise UsageError(f"The action can't be {shown(action)}.", "Use the form's buttons.")
        command = _command(source.arguments, settings)
        id = jobs.start(
            view.platform,
            Job(
                kind="plan" if action == "plan" else "train",
                adapter=source.adapter,
                config=None if source.config is None else source.config.to_json(),
                settings=settings,
                actor=view.access.actor,
                command=f"{command} --dry-run" if action == "plan" else command,
            ),
        )
    except TrunklineError as error:
        return _form(view, source, form, uploaded=uploaded, error=error)
    return Redirect(f"/train/jobs/{id}", {"job": id})


def _form(
    view: View,
    source: Source | None,
    values: Mapping[str, str],
    *,
    uploaded: Upload | None = None,
    check: DatasetCheck | None = None,
    error: TrunklineError | None = None,
) -> Page:
    settings = _fields_of(view, source, values)
    arguments: Sequence[str] = source.arguments if source else ()
    if source is None and uploaded is not None:
        file = uploaded.file.relative_to(view.platform.workspace.root)
        arguments = (*arguments, "--data", str(file), "--text", "COLUMN", "--label", "COLUMN")
    changed = {one.name: one.value for one in settings if one.value != one.default}
    labels = dict(list(check.labels.items())[:LABELS_SHOWN]) if check else {}
    return Page(
        "train_form.html",
        source.adapter if source else N_("Train on a file"),
        {
            "adapter": source and source.adapter,
            "upload": uploaded and {"id": uploaded.id, "file": uploaded.file.name,
                                    "columns": uploaded.columns},
            "settings": settings,
            "check": check,
            "error": error and {"message": error.message, "hint": error.hint},
        },
        {
            "first": [one for one in settings if one.name in FIRST_SETTINGS],
            "others": [one for one in settings if one.name not in FIRST_SETTINGS],
            "values": values,
            "learned": LEARNED,
            "column_fields": COLUMN_FIELDS,
            "labels": labels,
        },
        command=_command(arguments, changed),
        place="train",
        status=error.http_status if error else 200,
    )  # fmt: skip


def _command(arguments: Sequence[str], settings: Mapping[str, str]) -> str:
    """The command line that trains with these settings."""
    assignments = [f"{name}={value}" for name, value in settings.items()]
    options = [text for assignment in assignments for text in ("--set", assignment)]
    return shlex.join(["trunkline", "train", *arguments, *options])


def _fields_of(view: View, source: Source | None, values: Mapping[str, str]) -> list[SettingField]:
    """The settings with the values of the form, else those of the recipe."""
    settings = Settings()
    if source is not None:
        settings = view.platform.training_job(source.recipe, {}).settings
    listed = []
    for spec in sorted(fields(Settings), key=lambda spec: _rank(spec.name)):
        default = _text(getattr(settings, spec.name))
        kind = {bool: "flag", int: "integer", float: "number"}.get(type(spec.default), "text")
        choices = tuple(spec.metadata["choices"])
        listed.append(
            SettingField(
                name=spec.name,
                kind="choice" if choices else kind,  # type: ignore[arg-type]
                value=values.get(f"set.{spec.name}", default).strip(),
                default=default,
                help=spec.metadata["help"],
                least=spec.metadata["least"],
                most=spec.metadata["most"],
                choices=choices,
            )
        )
    return listed


def _changed(form: Mapping[str, str], settings: Sequence[SettingField]) -> dict[str, str]:
    """The settings that the form changes."""
    given = {one.name: form.get(f"set.{one.name}", one.default).strip() for one in settings}
    return {one.name: given[one.name] for one in settings if given[one.name] != one.default}


def _rank(name: str) -> int:
    return FIRST_SETTINGS.index(name) if name in FIRST_SETTINGS else len(FIRST_SETTINGS)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(view: View, job: TrainingJob) -> DatasetCheck:
    from trunkline.bases import DEFAULT_BASE, local_tokenizer

    tokenizer = local_tokenizer(view.platform.base_name or DEFAULT_BASE)
    return check_dataset(job.dataset, job.recipe, job.transforms, tokenizer)


def _plugin_source(view: View) -> Source:
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    view.platform.catalog.recipe(ref.adapter)
    return Source(ref.adapter, None, (ref.adapter,))


def _upload(view: View) -> Upload:
    return uploads.find(view.platform.workspace, view.path["id"], view.access)


def _own_source(view: View, uploaded: Upload) -> Source:
    """The recipe that the form describes.

    Raises:
        UsageError: a field is missing, or names no column.
        NotFoundError: the key may not use the adapter.
    """
    from trunkline.training.config import make_config

    form = view.form  # as it is: a column's name may begin or end with blanks
    name = Ref.parse(form.get("name", "").strip())
    view.access.check_adapter(name.domain, name.name)
    learned = form.get("learned", "")
    if learned not in LEARNED:
        raise UsageError(f"What to learn can't be {shown(learned)}.", "Choose one of the list.")
    file = uploaded.file
    data = {"text": form.get("text", ""), learned: form.get("column", "")}
    data |= {name: form[name] for name in COLUMN_FIELDS if form.get(name)}
    if learned != "relevant":
        data.pop("candidates", None)
    if separator := form.get("separator", ""):
        data["separator"] = separator
    missing = [name for name, value in data.items() if not value]
    if missing:
        raise UsageError(f"The column for {missing[0]} is missing.", "Choose one of the file's.")
    values = {"name": name.adapter, "data": {"file": str(file), **data}}
    config = make_config(values, "The form's values don't fit together")
    shown_file = str(file.relative_to(view.platform.workspace.root))
    arguments = ["--data", shown_file, "--name", name.adapter]
    for option, value in data.items():
        arguments += [f"--{option}", value]
    return Source(name.adapter, config, tuple(arguments))


# ------------------------------------------------------------------------------------ the jobs


@routes.get("/train/jobs/{id}", role=ROLE)
def job(view: View) -> Page:
    """How far a training or an estimate is."""
    state = _job(view)
    return Page(
        "job.html",
        state.job.adapter,
        {"job": _plain(state)},
        command=state.job.command,
        place="train",
    )


@routes.post("/train/jobs/{id}/stop", role=ROLE)
def stop_job(view: View) -> Redirect:
    """Ask the process of a job to stop."""
    state = _job(view)
    if not state.alive:
        raise RefusedError(N_("This training has ended already."), N_("Start another one."))
    if state.run is not None:
        request_stop(view.platform.workspace, view.registry, state.run, actor=view.access.actor)
    else:
        jobs.stop(view.platform, state.id)
    return Redirect(f"/train/jobs/{state.id}", {"job": state.id}, done="stopped")


@routes.post("/runs/{number:int}/stop", role=ROLE)
def stop_run(view: View) -> Redirect:
    """Ask the process that trains a run to stop, wherever it was started."""
    record = visible_run(view, view.path["number"])
    request_stop(view.platform.workspace, view.registry, record.number, actor=view.access.actor)
    return Redirect(f"/runs/{record.number}", {"run": record.number}, done="stopping")


@routes.post("/runs/{number:int}/resume", role=ROLE)
def resume_run(view: View) -> Redirect:
    """Continue an unfinished run in a process of its own."""
    record = visible_run(view, view.path["number"])
    if record.status == "finished":
        raise RefusedError(f"Run {record.number} has finished.", "Train the recipe again.")
    if is_trained(view.platform.workspace.run_path(record.number)):
        raise RefusedError(f"Run {record.number} is being trained.", "Wait, or stop it.")
    id = jobs.start(
        view.platform,
        Job(
            kind="train",
            adapter=record.recipe,
            resume=record.number,
            actor=view.access.actor,
            command=_command((record.recipe, "--resume", str(record.number)), {}),
        ),
    )
    return Redirect(f"/train/jobs/{id}", {"job": id, "run": record.number})


def _plain(state: JobState) -> dict[str, Any]:
    """What pages show of a job: nothing of this machine's paths."""
    job = state.job
    values = {name: getattr(job, name) for name in ("kind", "adapter", "settings", "resume",
                                                    "actor", "created")}  # fmt: skip
    names = ("id", "alive", "stage", "done", "total", "run", "version", "plan", "error", "hint")
    return values | {name: getattr(state, name) for name in names}


def _job(view: View) -> JobState:
    """The job that the path names, if the key may use its adapter."""
    state = jobs.get(view.platform, view.path["id"])
    if not view.access.may_use(state.job.adapter):
        raise NotFoundError(N_("There is no such training."), N_("See those under Train."))
    return state
