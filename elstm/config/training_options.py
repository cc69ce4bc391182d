"""Defines the options of the groups optimizer and scheduler, and the settings of the trainer."""

from __future__ import annotations

from dataclasses import dataclass

from elstm.config.fields import LARGE, MISSING, bounded, choice, setting

# --- optimizer


@dataclass
class OptimizerConfig:
    """Holds the options of every optimizer."""

    name: str = setting(MISSING, help="Names the optimizer. Choose it with optimizer=NAME.")
    lr: float = bounded(1e-3, gt=0, le=LARGE, help="Learning rate after the warm-up.")
    weight_decay: float = bounded(
        0.0, ge=0, le=LARGE, help="Strength of the decay of the parameters towards zero."
    )
    decay_all: bool = setting(
        True, help="Decays all parameters, as torch does. false spares biases, gamma and beta."
    )


@dataclass
class AdamConfig(OptimizerConfig):
    """Holds the options of Adam, and of AdamW under the name adamw."""

    name: str = setting("adam")
    beta1: float = bounded(
        0.9, ge=0, lt=1, help="Weight of the past in the running mean of the gradients."
    )
    beta2: float = bounded(
        0.999, ge=0, lt=1, help="Weight of the past in the running mean of the squared gradients."
    )
    eps: float = bounded(
        1e-8, gt=0, le=LARGE, help="Number added to the divisor, against a division by zero."
    )


@dataclass
class RMSpropConfig(OptimizerConfig):
    name: str = setting("rmsprop")
    alpha: float = bounded(
        0.99, ge=0, lt=1, help="Weight of the past in the running mean of the squared gradients."
    )
    momentum: float = bounded(0.0, ge=0, le=1, help="Weight of the past steps in a step.")
    eps: float = bounded(
        1e-8, gt=0, le=LARGE, help="Number added to the divisor, against a division by zero."
    )


@dataclass
class SGDConfig(OptimizerConfig):
    name: str = setting("sgd")
    momentum: float = bounded(0.9, ge=0, le=1, help="Weight of the past steps in a step.")
    nesterov: bool = setting(False, help="Uses Nesterov momentum, which needs momentum above 0.")


# --- scheduler


@dataclass
class SchedulerConfig:
    """Holds the options of every scheduler; by itself it leaves the learning rate constant."""

    name: str = setting("constant", help="Names the scheduler. Choose it with scheduler=NAME.")
    warmup_steps: int = bounded(
        0, ge=0, help="Number of first training steps over which the rate rises linearly to lr."
    )


@dataclass
class CosineConfig(SchedulerConfig):
    """Lowers the rate by half a cosine from lr to min_lr over all steps after the warm-up."""

    name: str = setting("cosine")
    min_lr: float = bounded(0.0, ge=0, le=LARGE, help="Learning rate at the end of the run.")


@dataclass
class StepConfig(SchedulerConfig):
    """Multiplies the rate by gamma after every step_epochs epochs."""

    name: str = setting("step")
    step_epochs: int = bounded(
        10, ge=1, help="Number of epochs after which the rate is multiplied by gamma, each time."
    )
    gamma: float = bounded(0.1, gt=0, le=1, help="Factor of the learning rate.")


@dataclass
class PlateauConfig(SchedulerConfig):
    """Multiplies the rate by factor if accuracy does not rise for more than `patience` epochs."""

    name: str = setting("plateau")
    factor: float = bounded(0.5, gt=0, lt=1, help="Factor of the learning rate.")
    patience: int = bounded(
        3,
        ge=0,
        help="Number of epochs without a higher validation accuracy that do not lower the "
        "rate yet.",
    )


# --- trainer


@dataclass
class TrainerConfig:
    max_epochs: int = bounded(10, ge=1, help="Number of epochs after which training ends.")
    max_steps: int | None = bounded(
        None, ge=1, help="Number of training steps after which training ends, if that is earlier."
    )
    device: str = choice(
        "auto", "auto", "cpu", "cuda", "mps", affects_training=False,
        help="Device that trains. auto uses a GPU if there is one.",
    )  # fmt: skip
    precision: str = choice(
        "fp32", "fp32", "bf16", "fp16",
        help="Precision of the computation. bf16 and fp16 are mixed with float32.",
    )  # fmt: skip
    deterministic: bool = setting(
        False,
        affects_training=False,
        help="Gives the same bits from the same seed on a GPU too, which costs speed.",
    )
    compile: bool = setting(
        False,
        affects_training=False,
        help="Trains through torch.compile; evaluation runs without it.",
    )
    cuda_graph: bool | str = choice(
        "auto", "auto", True, False, affects_result=False,
        help="Runs the full training step as one CUDA graph. auto does so on a CUDA GPU if the "
        "step can be captured.",
    )  # fmt: skip
    profile: bool = setting(
        False,
        affects_training=False,
        help="Writes a trace of training steps 4 to 8 to profile.json.gz in the run folder.",
    )
    clip_grad_norm: float | None = bounded(
        1.0, gt=0, help="Largest norm of the gradient; a larger one is scaled down. null: no limit."
    )
    accumulate: int = bounded(
        1, ge=1, le=10_000,
        help="Number of batches whose gradients an optimizer step adds up, with the memory of one. "
        "The step equals that of one large batch, except that batch statistics are those of each "
        "batch. Steps are counted and logged as optimizer steps, and batches that do not fill "
        "the last step of an epoch are left out.",
    )  # fmt: skip
    label_smoothing: float = bounded(
        0.0, ge=0, lt=1,
        help="Fraction of the training target that is spread evenly over all classes.",
    )  # fmt: skip
    class_weights: str | None = choice(
        None, "balanced",
        help="Weights of the classes in the training loss: balanced makes each class count the "
        "same, whatever its number of sequences. null: each sequence counts the same.",
    )  # fmt: skip
    ema_decay: float | None = bounded(
        None, gt=0, lt=1,
        help="Decay of an exponential moving average of the weights, such as 0.999. Validation, "
        "test and prediction then use the averaged weights. null: no average.",
    )  # fmt: skip
    early_stopping_epochs: int | None = bounded(
        None, ge=1,
        help="Number of epochs without a better validation accuracy after which training ends. "
        "null: training never ends early.",
    )  # fmt: skip
    evaluate_every: int = bounded(
        1, ge=1,
        help="Number of epochs between two evaluations, each with a checkpoint. The last epoch is "
        "always evaluated.",
    )  # fmt: skip
    log_every: int = bounded(
        50, ge=1, affects_result=False,
        help="Number of training steps between two rows of metrics.csv.",
    )  # fmt: skip
    checkpoint_every: int | None = bounded(
        None, ge=1, affects_result=False,
        help="Number of training steps between two checkpoints, beside those of evaluations.",
    )  # fmt: skip
    threads: int | None = bounded(
        None, ge=1, le=1024, affects_result=False,
        help="Number of CPU threads. null uses torch's default; parallel runs of a sweep share the "
        "cores.",
    )  # fmt: skip
    sync_batch_stats: bool = setting(
        False,
        help="Normalises with the statistics over the batches of all processes, if there are "
        "several.",
    )
    recompute_batches: int = bounded(
        1, ge=0,
        help="Number of batches from which population statistics are computed before an "
        "evaluation. 0 evaluates with the moving averages.",
    )  # fmt: skip
    recompute_batch_size: int | None = bounded(
        None, ge=2,
        help="Number of sequences in a batch for population statistics. null uses 5,000, or fewer "
        "if sequences are long or the layer is wide.",
    )  # fmt: skip
    overfit_batches: int | None = bounded(
        None, ge=1,
        help="Trains on this many batches, the same ones in each epoch, to test a model.",
    )  # fmt: skip
    progress: bool = setting(True, affects_result=False, help="Shows a progress bar.")
    init_from: str | None = setting(
        None,
        help="Run folder (its best.pt) or checkpoint whose weights a new run starts with. If that "
        "run has trainer.ema_decay, the averaged weights are used. The model has to have the "
        "same equations and sizes, but may have another name. The data set and the length of its "
        "sequences may differ. null: new weights.",
    )
    init_head: bool = setting(
        True, help="Loads the linear head from init_from as well. false starts with a new one."
    )
    resume: str | None = setting(
        None, affects_result=False,
        help="Folder of the run to resume. With another trainer.max_epochs, trainer.max_steps, "
        "trainer.early_stopping_epochs, optimizer.lr or scheduler, the run is extended. The new "
        "values hold from its last checkpoint on, and status.json records them.",
    )  # fmt: skip
