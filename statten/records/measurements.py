"""The files of what was measured: energy ledgers, firing rates for a report, what a step costs.

See metrics/energy.py, report/rates.py and search/costs.py.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from statten.records.reading import CLOSED, STRICT, Count, Number

Quantity = Annotated[float, Field(ge=0, le=1e30)]
"""A finite number, so large at most that no sum or product of a ledger overflows."""
Timesteps = Annotated[int, Field(ge=1, le=2**16)]


@with_config(CLOSED)
class Conventions(TypedDict, total=False):
    """What a ledger counts how; versions before lacked some."""

    first_layer: Literal["every_timestep", "once"]
    padding: Literal["counted", "skipped"]
    memory_pj_per_byte: Quantity | None
    mac_pj: Quantity
    ac_pj: Quantity


@with_config(STRICT)
class LedgerRow(TypedDict):
    """An operation, and what follows from its first fields."""

    layer: str
    kind: NotRequired[str]
    unit: Literal["MACs", "SOPs"]
    rate: Quantity
    inside: Quantity
    levels: NotRequired[Annotated[int, Field(ge=1, le=2**16)]]
    flops: Count
    timesteps: Timesteps
    bytes: Count
    operations: Quantity
    formula: str
    pj: Quantity
    memory_pj: Quantity


Rows = Annotated[list[LedgerRow], Field(min_length=1)]


@with_config(STRICT)
class Total(TypedDict):
    """The sums over rows."""

    macs: Quantity
    sops: Quantity
    pj: Quantity
    memory_pj: Quantity


@with_config(STRICT)
class Dense(TypedDict):
    """The ledger of a transformer of the same layers that computes with numbers."""

    rows: Rows
    total: Total


@with_config(STRICT)
class Ledger(TypedDict):
    """energy.json, and `energy` of a report."""

    unit: Literal["pJ per sample"]
    samples: Annotated[int, Field(ge=1, lt=2**63)]
    timesteps: Timesteps
    block_size: Timesteps
    conventions: Conventions
    model: NotRequired[dict[str, Any]]
    """The network, as in config.yaml; versions before had none."""
    rows: Rows
    total: Total
    non_spiking: Dense


@with_config(STRICT)
class Report(TypedDict, total=False):
    """What of an evaluation's report.json tells its network."""

    changed: dict[str, Any]
    """Fields of the run's config that were changed for it, by dotted path."""


@with_config(STRICT)
class Evaluation(TypedDict):
    """evaluation.json of a run: its newest evaluation on the test part."""

    checkpoint: str
    weights: str
    folder: str
    top1: Number
    loss: Number


@with_config(STRICT)
class Exported(TypedDict, total=False):
    """config.json of an export."""

    label_names: list[str]


@with_config(STRICT)
class LayerRate(TypedDict):
    """Spikes of a layer: its mean over timesteps, and by timestep."""

    layer: str
    rate: Number
    by_timestep: list[Number]
    state: str


@with_config(STRICT)
class Rates(TypedDict):
    """What rates.json holds of one trial."""

    samples: Count
    top1: Number
    layers: list[LayerRate]


def _sane(seconds: float) -> float:
    if not 0 <= seconds < 1e9:
        raise ValueError("must be seconds")
    return seconds


Seconds = Annotated[float, AfterValidator(_sane)]


@with_config(CLOSED)
class Cost(TypedDict):
    """What costs.json holds of one config."""

    memory_bytes: Count
    step_seconds: Seconds
    validation_seconds: Seconds
    there_bytes: Count
