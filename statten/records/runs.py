"""The files of a run or sweep folder; see storage/run.py, storage/checkpoint.py and search/sweep.py for what they are."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, StringConstraints, with_config
from typing_extensions import TypedDict

from statten.records.reading import STRICT, Count, Number


@with_config(STRICT)
class Grid(TypedDict, total=False):
    """How `promote --grid` chose (timesteps, block size)."""

    fields: dict[str, Any]
    """Overrides, by dotted path."""


@with_config(STRICT)
class Origin(TypedDict, total=False):
    """Where a run comes from: the trial of a sweep that it is or goes on from, the checkpoint that it started from."""

    sweep: str
    trial: Count
    point: dict[str, Any]
    inherited: Count
    seed: Count
    run: str
    checkpoint: str
    grid: Grid
    supernet: str


@with_config(STRICT)
class Marker(TypedDict, total=False):
    """run.json, sweep.json and supernet.json."""

    kind: str
    created: str
    origin: Origin | None
    study: str
    """Name of a sweep's study."""
    space: str
    """SHA-256 of a supernet's space.yaml."""
    watched: dict[str, dict[str, Any]]
    """Points of a supernet that are validated after every epoch, by what they are called."""
    points: Count
    """How many points of a supernet are evaluated."""


@with_config(STRICT)
class Environment(TypedDict, total=False):
    """environment.json: what a number was computed with."""

    python: str
    processor: str
    cpus: Count | None
    gpus: list[str]
    versions: dict[str, str | None]
    commit: str | None
    command: Annotated[list[str], Field(min_length=1)]


def _whole_epoch(row: dict[str, Any]) -> dict[str, Any]:
    epoch = row.get("epoch", 0)
    if not (isinstance(epoch, int | float) and 0 <= epoch < 2**31 and epoch == int(epoch)):
        raise ValueError("must have a whole number as epoch")
    return row


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    if missing := [name for name in ("epoch", "val/top1", "val/loss") if name not in row]:
        raise ValueError(f"must have {', '.join(missing)}")
    return row


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    for name, value in row.items():
        if isinstance(value, str) != (name == "checkpoint"):
            raise ValueError(f"must have {'a folder' if name == 'checkpoint' else 'a number'} as {name}")
    return row


Metrics = Annotated[dict[str, Number], AfterValidator(_whole_epoch)]
"""Metrics of an epoch, by name; of an older version some may be missing, and before the first epoch all are."""
Row = Annotated[Metrics, AfterValidator(_judged)]
"""A line of metrics.jsonl: an epoch that a run can be judged by."""
Best = Annotated[dict[str, Number | str], AfterValidator(_numbers), AfterValidator(_whole_epoch)]
"""Metrics of the best epoch, and `checkpoint`, its folder inside the run."""


@with_config(STRICT)
class Result(TypedDict):
    """result.json."""

    state: NotRequired[Literal["finished", "failed", "stopped"]]
    reason: NotRequired[str | None]
    cause: NotRequired[str | None]
    best: NotRequired[Best]
    last: NotRequired[Metrics]
    epochs: NotRequired[Count]
    seconds: NotRequired[Number]
    ended: NotRequired[str]


@with_config(STRICT)
class Progress(TypedDict):
    """progress.json."""

    epoch: Count
    epochs: Count
    step: Count
    steps: Count
    time: Number


@with_config(STRICT)
class Numbers(TypedDict):
    """What an optimizer keeps beside tensors."""

    state: dict[str, Any]
    param_groups: list[dict[str, Any]]


FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@with_config(STRICT)
class Seal(TypedDict):
    """What of a checkpoint's state.json tells whether the checkpoint is whole."""

    sha256: dict[FileName, Digest]
    """Of each file beside it."""
    digest: NotRequired[Digest]
    """Of this document without the digest; versions before had none."""


@with_config(STRICT)
class State(Seal):
    """The whole of a checkpoint's state.json."""

    epoch: Count
    step: Count
    sums: list[Number] | None
    seconds: Number
    metrics: Metrics
    best: Metrics
    optimizer: Numbers
    scaler: dict[str, Any]
    config: NotRequired[dict[str, Any] | None]
    """The parts data, model and train that it was written under."""
    classes: NotRequired[list[str]]
    """Name of each label."""


@with_config(STRICT)
class Attributes(TypedDict, total=False):
    """What a sweep's study keeps of a trial beside its values."""

    point: dict[str, Any]
    """Its fields, by dotted path."""
    reason: str | None
    """Why it was stopped, failed, or was not run."""
    duplicate_of: int
    put_off: int
    too_large: int
    """Why it was not run: another trial, or -1."""
    lost: bool
    then: dict[str, Any]
    """The point that follows when this one, with fewer timesteps, is done."""
    inherited: Count
    source: str
    """Its folder, where another sweep trained it."""
    memory_bytes: Count


@with_config(STRICT)
class Changed(TypedDict):
    """Rules and budgets that `extend` changed."""

    from_trial: Count
    fields: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]]
    """What each was, and is since."""


@with_config(STRICT)
class StudyAttributes(TypedDict, total=False):
    """What a sweep's study keeps of the whole sweep."""

    ended: Count
    """Trials that it was asked for when all had ended."""
    seconds: Number
    """Time that it took so far, with `search.max_hours`."""
    changed: list[Changed]


@with_config(STRICT)
class Trial(TypedDict):
    """A trial of a study, as Optuna has read it from a journal or a database."""

    user_attrs: Attributes
    system_attrs: dict[str, Any]
    constraints: dict[str, Number]
    values: list[Number] | None
    intermediate_values: dict[int, Number]


@with_config(STRICT)
class Inherited(TypedDict):
    """A line of a supernet's points.jsonl: a point, evaluated with the weights that it has there."""

    number: Count
    point: dict[str, Any]
    metrics: dict[str, Number]
    checkpoint: str
    """Folder of the weights inside the supernet's checkpoints."""
    seconds: Number


@with_config(STRICT)
class ProxyFront(TypedDict):
    """What a proxy that costs nothing says of a supernet's points."""

    formula: str
    tau: Number | None
    front: list[Count]
    hypervolume: Number | None


@with_config(STRICT)
class Front(TypedDict):
    """front.json of a supernet."""

    objectives: dict[str, str]
    evaluated: Count
    front: Annotated[list[Inherited], Field(min_length=1)]
    hypervolume: Number | None
    proxy: ProxyFront


Sources = dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], str]
"""sources.json: folders of trials that were taken over from another sweep, by number."""
LoggedAs = dict[str, str]
"""loggers.json: ids of the run elsewhere, by logger."""
