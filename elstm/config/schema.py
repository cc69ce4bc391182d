"""Typed configs: what each YAML group may hold, with the allowed values beside each field.

Hydra composes YAML onto these dataclasses, so a wrong type or an unknown key is refused; `validate`
checks types, ranges and choices again, wherever a config came from. Knows neither torch nor Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from elstm.data.catalog import DATA_SETS

MISSING: Any = "???"  # OmegaConf's mark for a value that has to be given


# The mark of a setting that says where files lie, what is shown or how often something is saved.
# Runs that differ in marked settings alone have the same result: `settings_without_effect`.
NO_EFFECT = {"affects_result": False}

LARGE = 1_000  # beyond that gates and norms compute nothing but overflow in float32
TINY = 1e-12  # of the eps of a norm: its gradient holds eps to the power of -1.5
BACKENDS = ("auto", "cpu", "triton", "reference")  # elstm.nn.BACKENDS, without importing torch


def bounded(
    default: Any, *, ge: float | None = None, gt: float | None = None,
    le: float | None = None, lt: float | None = None, affects_result: bool = True,
) -> Any:  # fmt: skip
    """A number within bounds (None passes where the field is Optional)."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return field(default=default, metadata={**bounds, "affects_result": affects_result})


def choice(default: Any, *allowed: Any, affects_result: bool = True) -> Any:
    """One of the values listed."""
    return field(default=default, metadata={"choices": allowed, "affects_result": affects_result})


def bias(default: float | str) -> Any:
    """A gate bias: a number, or "chrono" for log-uniform over the sequence length."""
    return field(default=default, metadata={"number_or": ("chrono",), "ge": -LARGE, "le": LARGE})


def gamma(default: float | None) -> Any:
    """The first value of a norm's gain."""
    return bounded(default, ge=-LARGE, le=LARGE)


# --- model: the fields are the constructor arguments of the layers in elstm.nn


@dataclass
class ModelConfig:
    name: str = MISSING
    hidden_size: int = bounded(128, ge=1, le=65_536)
    num_layers: int = bounded(1, ge=1, le=100)
    bidirectional: bool = False
    dropout: float = bounded(0.0, ge=0, lt=1)
    recurrent_init: str = choice("orthogonal", "orthogonal", "identity")
    state_noise: float = bounded(0.0, ge=0, le=LARGE)
    learn_initial_state: bool = False
    backend: str = choice("auto", *BACKENDS)

    def options(self) -> dict[str, Any]:
        """Returns the arguments of the layer: every field but the name."""
        return {name: value for name, value in vars(self).items() if name != "name"}


@dataclass
class GRUConfig(ModelConfig):
    name: str = "gru"
    update_bias: int | float | str = bias(1.0)


@dataclass
class GateBiasConfig(ModelConfig):
    forget_bias: int | float | str = bias(1.0)
    input_bias: int | float | str = bias(0.0)


@dataclass
class LSTMConfig(GateBiasConfig):
    name: str = "lstm"
    recompute: bool = False  # keep less for the backward pass: slower, for long sequences


@dataclass
class LayerNormLSTMConfig(GateBiasConfig):
    name: str = "ln_lstm"
    eps: float = bounded(1e-5, ge=TINY, le=LARGE)
    gamma_ih: float = gamma(1.0)
    gamma_hh: float = gamma(1.0)
    gamma_c: float = gamma(1.0)


@dataclass
class BNLSTMConfig(LSTMConfig):
    name: str = "bn_lstm"
    eps: float | None = bounded(None, ge=TINY, le=LARGE)  # None: by what each norm needs (elstm.nn)
    momentum: float | None = bounded(0.1, gt=0, le=1)
    gamma_ih: float = gamma(1.0)
    gamma_hh: float = gamma(1.0)
    gamma_c: float | None = gamma(None)  # None: 3 for a norm whose result is carried on, else 1
    normalize_input: bool = True
    normalize_hidden: bool = True


@dataclass
class ELSTMBNConfig(BNLSTMConfig):
    name: str = "elstm_bn"
    cell_norm: str = choice(
        "update", "none", "output", "update", "increment", "terms", "carry", "update_output"
    )


# --- data

# The resolvers that a config may hold: an environment variable, and a name from a path.
DATA_ROOT = "${oc.env:ELSTM_DATA,data}"
DATA_NAME = "${data_name:${data.path}}"


@dataclass
class DataConfig:
    """What every data set has."""

    name: str = MISSING
    train_size: int | None = bounded(None, ge=2)
    batch_size: int = bounded(128, ge=2)  # of each process
    eval_batch_size: int = bounded(1000, ge=2)


@dataclass
class DigitsConfig(DataConfig):
    """Images that come with scikit-learn."""

    pixels_per_step: int = bounded(28, ge=1)
    permute: bool = False
    permute_seed: int = bounded(0, ge=0)


@dataclass
class ImageSetConfig(DigitsConfig):
    """Images in files that are downloaded."""

    root: str = field(default=DATA_ROOT, metadata=NO_EFFECT)


@dataclass
class OwnDataConfig(DataConfig):
    """Labelled sequences of the user's own; `source` says how `path` is read."""

    source: str = MISSING
    name: str = DATA_NAME
    path: str = field(default=MISSING, metadata=NO_EFFECT)
    batch_size: int = bounded(32, ge=2)
    val_fraction: float = bounded(0.15, gt=0, lt=1)  # where the files have no validation split
    test_fraction: float = bounded(0.15, gt=0, lt=1)
    split_seed: int = bounded(0, ge=0)  # what the splits that are drawn follow from
    folds: int | None = bounded(None, ge=2, le=1000)  # k-fold cross-validation
    fold: int | None = bounded(None, ge=0)  # which part tests, from 0


@dataclass
class SeriesConfig(OwnDataConfig):
    """Sequences of numbers."""

    standardize: bool = True
    missing: str = choice("error", "error", "zero", "forward")
    bucket: bool = False  # batches of similar lengths


@dataclass
class ArraysConfig(SeriesConfig):
    source: str = "arrays"
    layout: str = choice("ntc", "ntc", "nct", "nt")


@dataclass
class TableConfig(SeriesConfig):
    source: str = "table"
    id: str = MISSING
    label: str = MISSING
    time: str | None = None
    features: str | None = None  # "a,b": all other columns by default
    separator: str = ","


@dataclass
class TsConfig(SeriesConfig):
    source: str = "ts"


@dataclass
class ImagesConfig(OwnDataConfig):
    source: str = "images"
    channels: int = choice(1, 1, 3)
    image_size: int | str | None = None  # 28, or 28x32 (rows x columns); None: all have one size
    pixels_per_step: int | None = bounded(None, ge=1)  # None: a row a step
    permute: bool = False
    permute_seed: int = bounded(0, ge=0)


# --- optimizer


@dataclass
class OptimizerConfig:
    name: str = MISSING
    lr: float = bounded(1e-3, gt=0, le=LARGE)
    weight_decay: float = bounded(0.0, ge=0, le=LARGE)
    decay_all: bool = True  # as in torch; false: biases, gamma and beta are left out


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam, and AdamW under the name adamw."""

    name: str = "adam"
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.999, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0, le=LARGE)


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = "rmsprop"
    alpha: float = bounded(0.99, ge=0, lt=1)
    momentum: float = bounded(0.0, ge=0, le=1)
    eps: float = bounded(1e-8, gt=0, le=LARGE)


@dataclass
class SGDConfig(OptimizerConfig):
    name: str = "sgd"
    momentum: float = bounded(0.9, ge=0, le=1)
    nesterov: bool = False


# --- scheduler: each with a linear warm-up over warmup_steps training steps (0: none)


@dataclass
class SchedulerConfig:
    name: str = "constant"
    warmup_steps: int = bounded(0, ge=0)


@dataclass
class CosineConfig(SchedulerConfig):
    """Half a cosine from lr to min_lr over all training steps after the warm-up."""

    name: str = "cosine"
    min_lr: float = bounded(0.0, ge=0, le=LARGE)


@dataclass
class StepConfig(SchedulerConfig):
    """lr times gamma after every step_epochs epochs."""

    name: str = "step"
    step_epochs: int = bounded(10, ge=1)
    gamma: float = bounded(0.1, gt=0, le=1)


@dataclass
class PlateauConfig(SchedulerConfig):
    """lr times factor when validation accuracy has not risen for `patience` epochs."""

    name: str = "plateau"
    factor: float = bounded(0.5, gt=0, lt=1)
    patience: int = bounded(3, ge=0)


# --- trainer


@dataclass
class TrainerConfig:
    max_epochs: int = bounded(10, ge=1)
    max_steps: int | None = bounded(None, ge=1)
    device: str = choice("auto", "auto", "cpu", "cuda", "mps")
    precision: str = choice("fp32", "fp32", "bf16", "fp16")
    deterministic: bool = False
    compile: bool = False
    # the full step as one CUDA graph; auto: on a CUDA GPU, wherever it can be captured
    cuda_graph: bool | str = choice("auto", "auto", True, False, affects_result=False)
    profile: bool = False
    clip_grad_norm: float | None = bounded(1.0, gt=0)
    early_stopping_epochs: int | None = bounded(None, ge=1)
    log_every: int = bounded(50, ge=1, affects_result=False)
    # steps; None: after each epoch
    checkpoint_every: int | None = bounded(None, ge=1, affects_result=False)
    threads: int | None = bounded(None, ge=1, le=1024, affects_result=False)
    sync_batch_stats: bool = False  # of several processes: statistics of their whole batch
    recompute_batches: int = bounded(1, ge=0)  # 0: evaluate with the moving averages
    recompute_batch_size: int | None = bounded(None, ge=2)  # None: 5,000, fewer if T or H is large
    overfit_batches: int | None = bounded(None, ge=1)
    progress: bool = field(default=True, metadata=NO_EFFECT)
    resume: str | None = field(default=None, metadata=NO_EFFECT)


# --- sweep: how elstm-train -m goes about its runs; no run depends on it


@dataclass
class SweepConfig:
    fail_fast: bool = False  # stop at the first run that fails
    rerun: bool = False  # train finished runs again


# --- hydra.sweeper with hydra/sweeper=optuna: a search (elstm/sweeps/search.py)


@dataclass
class SearchConfig:
    """Where Hydra's own Optuna sweeper has the same setting, the name is its."""

    _target_: str = "elstm.sweeps.search.Search"  # marks it; Hydra never calls it
    n_trials: int = bounded(20, ge=1, le=10_000)  # in all, with those of earlier commands
    n_jobs: int | None = bounded(None, ge=1, le=10_000)  # together; None: as the launcher does
    sampler: str = choice("tpe", "tpe", "gp", "random")
    seed: int = bounded(0, ge=0, le=2**32 - 1)
    pruner: str = choice("median", "median", "hyperband", "none")
    startup_trials: int = bounded(5, ge=0)  # median: so many have ended before one is pruned
    warmup_epochs: int = bounded(1, ge=0)  # none is pruned before its epoch after these
    study_name: str | None = None  # None: named after what is searched


@dataclass
class Config:
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    scheduler: SchedulerConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig, metadata=NO_EFFECT)
    seed: int = bounded(0, ge=0, le=2**32 - 1)  # what every generator takes


# Models that differ in their names alone. The value is the name that runs of earlier versions have.
SAME_LAYER = {"bn_lstm_published": "bn_lstm"}

# The dataclass of each option, by the `name` that its YAML gives it; of own data, by `source`.
SCHEMAS: dict[str, dict[str, type[Any]]] = {
    "model": {
        "lstm": LSTMConfig,
        "gru": GRUConfig,
        "ln_lstm": LayerNormLSTMConfig,
        "bn_lstm": BNLSTMConfig,
        "bn_lstm_published": BNLSTMConfig,  # the settings of Cooijmans et al. (2017)
        "bn_lstm_input": ELSTMBNConfig,
        "elstm_bn": ELSTMBNConfig,
    },
    "data": {
        **{
            name: ImageSetConfig if each.folder else DigitsConfig
            for name, each in DATA_SETS.items()
        },
        "arrays": ArraysConfig,
        "table": TableConfig,
        "ts": TsConfig,
        "images": ImagesConfig,
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


def settings_without_effect() -> tuple[str, ...]:
    """Lists the keys that do not change a result, and groups of which no key does.

    Sweeps compare runs without them, reports group runs without them, and TensorBoard's HPARAMS
    leave them out.
    """
    owners = {"": Config, "trainer.": TrainerConfig}
    keys = {(prefix, each) for prefix, owner in owners.items() for each in fields(owner)}
    for group, schemas in SCHEMAS.items():
        keys |= {(f"{group}.", each) for schema in schemas.values() for each in fields(schema)}
    marked = {
        prefix + each.name for prefix, each in keys if not each.metadata.get("affects_result", True)
    }
    return tuple(sorted(marked))
