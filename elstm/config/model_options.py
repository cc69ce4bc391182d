"""Defines the options of the group model, whose fields are arguments of the layers in elstm.nn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from elstm.config.fields import LARGE, MISSING, TINY, bias, bounded, choice, gamma, setting

BACKENDS = ("auto", "cpu", "triton", "reference")  # elstm.nn.BACKENDS, without importing torch


@dataclass
class ModelConfig:
    """Holds the options of every model."""

    name: str = setting(MISSING, help="Names the model. Choose it with model=NAME.")
    hidden_size: int = bounded(128, ge=1, le=65_536, help="Number of hidden units of a layer.")
    num_layers: int = bounded(1, ge=1, le=100, help="Number of stacked layers.")
    bidirectional: bool = setting(
        False, help="Adds a second set of weights, which reads each sequence from its end."
    )
    dropout: float = bounded(
        0.0, ge=0, lt=1,
        help="Probability of dropout on the output of each layer but the last, in training.",
    )  # fmt: skip
    recurrent_init: str = choice(
        "orthogonal", "orthogonal", "identity",
        help="Initial recurrent weights: orthogonal blocks, or the identity for gate g.",
    )  # fmt: skip
    state_noise: float = bounded(
        0.0, ge=0, le=LARGE,
        help="Standard deviation of the Gaussian noise on the initial h in training.",
    )  # fmt: skip
    learn_initial_state: bool = setting(
        False, help="Makes the initial state a parameter, which starts at zero."
    )
    backend: str = choice(
        "auto", *BACKENDS, affects_training=False,
        help="Code that runs the recurrence. auto uses the fastest that serves a call. With "
        "model=gru only auto and reference are possible, with model=ln_lstm these and cpu.",
    )  # fmt: skip

    def options(self) -> dict[str, Any]:
        """Returns the arguments of the layer: every field but the name."""
        return {name: value for name, value in vars(self).items() if name != "name"}


@dataclass
class GRUConfig(ModelConfig):
    name: str = setting("gru")
    update_bias: int | float | str = bias(
        1.0, help="Initial bias of the update gate. chrono spreads memories over all steps."
    )


@dataclass
class GateBiasConfig(ModelConfig):
    forget_bias: int | float | str = bias(
        1.0, help="Initial bias of the forget gate. chrono spreads memories over all steps."
    )
    input_bias: int | float | str = bias(
        0.0, help="Initial bias of the input gate. chrono uses the opposite of the forget bias."
    )


@dataclass
class LSTMConfig(GateBiasConfig):
    name: str = setting("lstm")
    recompute: bool = setting(
        False,
        affects_training=False,
        help="Saves memory on long sequences, because the backward pass computes states a second "
        "time.",
    )


@dataclass
class LayerNormLSTMConfig(GateBiasConfig):
    name: str = setting("ln_lstm")
    eps: float = bounded(1e-5, ge=TINY, le=LARGE, help="Number added to the variance in each norm.")
    gamma_ih: float = gamma(1.0, help="Initial gain of the norm of the input projection.")
    gamma_hh: float = gamma(1.0, help="Initial gain of the norm of the hidden projection.")
    gamma_c: float = gamma(1.0, help="Initial gain of the norm of the cell.")


@dataclass
class BNLSTMConfig(LSTMConfig):
    name: str = setting("bn_lstm")
    eps: float | None = bounded(
        None, ge=TINY, le=LARGE,
        help="Number added to the variance in each norm. null uses 0.1. For a norm whose result is "
        "carried to the next step it uses gamma_c squared, if that is larger.",
    )  # fmt: skip
    momentum: float | None = bounded(
        0.1, gt=0, le=1,
        help="Weight of a new batch in the moving averages of the statistics. null weights all "
        "batches alike.",
    )  # fmt: skip
    gamma_ih: float = gamma(1.0, help="Initial gain of the norm of the input projection.")
    gamma_hh: float = gamma(1.0, help="Initial gain of the norm of the hidden projection.")
    gamma_c: float | None = gamma(
        None,
        help="Initial gain of the norm of the cell. null uses 3 for a norm whose result is carried "
        "to the next step, else 1.",
    )
    normalize_input: bool = setting(True, help="Normalises the projection of the input.")
    normalize_hidden: bool = setting(True, help="Normalises the projection of the hidden state.")


@dataclass
class ELSTMBNConfig(BNLSTMConfig):
    name: str = setting("elstm_bn")
    cell_norm: str = choice(
        "update", "none", "output", "update", "increment", "terms", "carry", "update_output",
        "center",
        help="Place of the norm in the cell update; elstm/nn/recurrence.py has the equations. "
        "center is update without the scaling, so it only subtracts the mean and adds beta.",
    )  # fmt: skip
