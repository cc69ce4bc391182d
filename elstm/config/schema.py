"""Defines the typed config: groups, their options, and the dataclass of each option.

Hydra composes YAML onto these dataclasses, so a wrong type or an unknown key is refused; `validate`
checks types, ranges and choices again, wherever a config came from. The fields are in
model_options.py, data_options.py and training_options.py, each with its default, its allowed values
and its help. No module here imports torch or Hydra.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, replace
from typing import Any

from elstm.config.data_options import (
    USER_DATA,
    DataConfig,
    DigitsConfig,
    ImagesConfig,
    ImageSetConfig,
    SeriesConfig,
)
from elstm.config.fields import MISSING, bounded, choice, leaves, setting
from elstm.config.model_options import (
    BNLSTMConfig,
    ELSTMBNConfig,
    GRUConfig,
    LayerNormLSTMConfig,
    LSTMConfig,
    ModelConfig,
)
from elstm.config.training_options import (
    AdamConfig,
    CosineConfig,
    OptimizerConfig,
    PlateauConfig,
    RMSpropConfig,
    SchedulerConfig,
    SGDConfig,
    StepConfig,
    TrainerConfig,
)
from elstm.data.catalog import DATA_SETS, READERS


@dataclass
class SweepConfig:
    """Holds the settings of sweeps (elstm-train -m); no run depends on them."""

    fail_fast: bool = setting(False, help="Stops the sweep at the first run that fails.")
    rerun: bool = setting(False, help="Trains finished runs again.")


@dataclass
class TrackingConfig:
    """Holds the settings of trackers beside TensorBoard; elstm/records/feeds.py uses them."""

    wandb: bool = setting(
        False, affects_result=False,
        help="Shows the run in Weights & Biases too. WANDB_MODE=offline needs no network; "
        "WANDB_PROJECT and WANDB_ENTITY choose the project. It needs pip install 'elstm[wandb]'.",
    )  # fmt: skip
    mlflow: bool = setting(
        False, affects_result=False,
        help="Shows the run in MLflow too, in mlflow.db of the current folder, which `mlflow ui` "
        "shows under \"Model training\", or at MLFLOW_TRACKING_URI. It needs pip install "
        "'elstm[mlflow]'.",
    )  # fmt: skip


@dataclass
class SearchConfig:
    """Holds hydra.sweeper with hydra/sweeper=optuna; see elstm/sweeps/search.py.

    A setting that Hydra's own Optuna sweeper has too has the same name here.
    """

    _target_: str = "elstm.sweeps.search.Search"  # marks it; Hydra never calls it
    n_trials: int = bounded(
        20, ge=1, le=10_000,
        help="Number of trials in the study, including those of earlier commands.",
    )  # fmt: skip
    n_jobs: int | None = bounded(
        None, ge=1, le=10_000,
        help="Number of trials that are chosen together, and train at once with a launcher. null "
        "uses the number of the launcher.",
    )  # fmt: skip
    sampler: str = choice("tpe", "tpe", "gp", "random", help="Optuna's sampler of the values.")
    seed: int = bounded(0, ge=0, le=2**32 - 1, help="Seed of the sampler.")
    pruner: str = choice(
        "median", "median", "hyperband", "none",
        help="Optuna's pruner, which ends trials that fall behind.",
    )  # fmt: skip
    startup_trials: int = bounded(
        5, ge=0, help="Number of finished trials before the median pruner ends one."
    )
    warmup_epochs: int = bounded(
        1, ge=0, help="Number of first epochs in which no trial is pruned."
    )
    study_name: str | None = setting(
        None, help="Name of the study. null derives it from the search."
    )


@dataclass
class Config:
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata={"affects_result": False})
    seed: int = bounded(
        0, ge=0, le=2**32 - 1,
        help="Seed of every random generator: initial weights, order of the batches, dropout.",
    )  # fmt: skip


# Models that differ in their names alone. The value is the name that runs of earlier versions have.
SAME_LAYER = {"bn_lstm_published": "bn_lstm"}

# The dataclass of each option, by the `name` that its YAML gives it; of user data, by `source`.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "model": {
        "lstm": LSTMConfig,
        "gru": GRUConfig,
        "ln_lstm": LayerNormLSTMConfig,
        "bn_lstm": BNLSTMConfig,
        "bn_lstm_published": BNLSTMConfig,  # the settings of Cooijmans et al. (2017)
        "bn_lstm_input": ELSTMBNConfig,
        "bn_lstm_gates": ELSTMBNConfig,
        "elstm_bn": ELSTMBNConfig,
        "elstm_bn_center": ELSTMBNConfig,
    },
    "data": {
        **{
            name: ImageSetConfig if each.folder else DigitsConfig
            for name, each in DATA_SETS.items()
        },
        **{name: USER_DATA.get(name, SeriesConfig) for name in READERS},
    },
    "optimizer": {
        "adam": AdamConfig,
        "adamw": AdamConfig,
        "rmsprop": RMSpropConfig,
        "sgd": SGDConfig,
    },
    "scheduler": {
        "constant": SchedulerConfig,
        "cosine": CosineConfig,
        "step": StepConfig,
        "plateau": PlateauConfig,
    },
}


def data_with_seed(config: Config) -> DataConfig:
    """Returns the group data, with the run's seed for the order of the pixels where it is null."""
    data = config.data
    if isinstance(data, DigitsConfig | ImagesConfig) and data.permute_seed is None:
        return replace(data, permute_seed=config.seed)
    return data


def settings_without_effect() -> tuple[str, ...]:
    """Lists the keys that do not change a result, and groups of which no key does.

    Sweeps compare runs without them, reports group runs without them, and TensorBoard's HPARAMS
    leave them out.
    """
    return _without("affects_result")


def settings_outside_training() -> tuple[str, ...]:
    """Lists the keys that do not affect what is trained, but at most where or how it is computed.

    They contain all keys without an effect on the result. Names of run folders and the settings in
    checkpoints leave them out.
    """
    return _without("affects_training")


def _without(mark: str) -> tuple[str, ...]:
    owners = {"": Config, "trainer.": TrainerConfig, "tracking.": TrackingConfig}
    kinds = [*owners.items(), *((f"{g}.", each) for g in SCHEMAS for each in SCHEMAS[g].values())]
    keys = {(f"{prefix}{name}", each) for prefix, o in kinds for name, _, each in leaves(o)}
    return tuple(sorted({key for key, each in keys if _lacks(each, mark)}))


def _lacks(each: Field[Any], mark: str) -> bool:
    return not each.metadata.get(mark, each.metadata.get("affects_result", True))
