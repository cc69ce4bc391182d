"""SequenceClassifier, and the layers that the configs name."""

import inspect
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from elstm.config.schema import (
    SCHEMAS,
    BNLSTMConfig,
    ELSTMBNConfig,
    GRUConfig,
    LayerNormLSTMConfig,
    LSTMConfig,
)
from elstm.models import RECURRENT_LAYERS, SequenceClassifier, build_model
from elstm.nn import (
    BNLSTM,
    CELL_NORMS,
    ELSTMBN,
    GRU,
    LSTM,
    LayerNormLSTM,
    recompute_statistics,
    statistics_norms,
)
from elstm.nn.init import RECURRENT_INITS

T, B, F, H, CLASSES = 5, 4, 3, 6, 10
CONFIGS = {
    "lstm": LSTMConfig(),
    "gru": GRUConfig(),
    "ln_lstm": LayerNormLSTMConfig(),
    "bn_lstm": BNLSTMConfig(),
    "bn_lstm_published": BNLSTMConfig(
        name="bn_lstm_published", gamma_ih=0.1, gamma_hh=0.1, gamma_c=0.1, eps=1e-5
    ),
    "bn_lstm_input": ELSTMBNConfig(
        name="bn_lstm_input", cell_norm="none", normalize_hidden=False
    ),
    "bn_lstm_gates": ELSTMBNConfig(name="bn_lstm_gates", cell_norm="none"),
    "elstm_bn": ELSTMBNConfig(),
    "elstm_bn_center": ELSTMBNConfig(name="elstm_bn_center", cell_norm="center"),
}  # fmt: skip


def build(name, **options):
    config = CONFIGS[name]
    config = type(config)(**asdict(config) | {"hidden_size": H} | options)
    return build_model(
        config.name, config.options(), input_size=F, num_steps=T, num_classes=CLASSES
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_logits_are_the_head_s_on_the_last_hidden_state(name, options):
    model = build(name, **options).eval()
    x = torch.randn(T, B, F)
    logits = model(x)
    assert logits.shape == (B, CLASSES)
    output, _ = model.rnn(x)
    last = output[-1]  # of the last layer
    if options:  # the backward direction ends at the first step
        last = torch.cat((output[-1, :, :H], output[0, :, H:]), dim=1)
    expected = last.detach().numpy() @ model.head.weight.detach().numpy().T
    expected += model.head.bias.detach().numpy()
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    model = build(name)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(T, B, F), torch.arange(B)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    recompute_statistics(model, [x])
    loss = torch.nn.functional.cross_entropy(model.eval()(x), y).item()
    assert loss < losses[-1]


def test_the_names_stand_for_the_layers_of_the_docs():
    assert CONFIGS.keys() == RECURRENT_LAYERS.keys() == SCHEMAS["model"].keys()
    layers = {name: build(name).rnn for name in CONFIGS}
    assert {name: type(layer) for name, layer in layers.items()} == {
        "lstm": LSTM,
        "gru": GRU,
        "ln_lstm": LayerNormLSTM,
        "bn_lstm": BNLSTM,
        "bn_lstm_published": BNLSTM,
        "bn_lstm_input": ELSTMBN,
        "bn_lstm_gates": ELSTMBN,
        "elstm_bn": ELSTMBN,
        "elstm_bn_center": ELSTMBN,
    }
    norms = {name: [n for n, _ in statistics_norms(layer)] for name, layer in layers.items()}
    assert norms == {
        "lstm": [],
        "gru": [],
        "ln_lstm": [],
        "bn_lstm": ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"],
        "bn_lstm_published": ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"],
        "bn_lstm_input": ["norm_ih_l0"],
        "bn_lstm_gates": ["norm_ih_l0", "norm_hh_l0"],
        "elstm_bn": ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"],
        "elstm_bn_center": ["norm_ih_l0", "norm_hh_l0", "norm_c_l0"],
    }
    assert layers["bn_lstm"].cell_norm == "output"
    assert layers["elstm_bn"].cell_norm == "update"


def test_statistics_are_kept_for_each_step():
    model = build("elstm_bn")
    assert model.rnn.max_steps == T
    assert all(norm.running_mean.shape[0] == T for _, norm in statistics_norms(model))


@pytest.mark.parametrize("config_class", sorted({type(c) for c in CONFIGS.values()}, key=str))
def test_a_config_is_the_layer_s_arguments_with_the_layer_s_defaults(config_class):
    """Checks all but the biases, because the runner knows the length for "chrono".

    max_steps follows from the data, and what the runner has no use for stays out.
    """
    layer = RECURRENT_LAYERS[config_class().name]
    arguments = inspect.signature(layer).parameters
    config = {field.name: field for field in fields(config_class) if field.name != "name"}
    unused = {"input_size", "bias", "batch_first", "proj_size", "device", "dtype", "max_steps"}
    unused |= {"sync_batch_stats", "process_group"}  # the trainer's
    assert config.keys() == arguments.keys() - unused
    for name, field in config.items():
        if name not in {"hidden_size", "forget_bias", "input_bias", "update_bias"}:
            assert field.default == arguments[name].default, name


def test_the_choices_of_the_config_are_those_of_the_layers():
    config = {field.name: field.metadata for field in fields(ELSTMBNConfig)}
    assert set(config["cell_norm"]["choices"]) == CELL_NORMS.keys()
    assert set(config["recurrent_init"]["choices"]) == set(RECURRENT_INITS)


def test_any_layer_takes_a_head():
    model = SequenceClassifier(ELSTMBN(F, H, bidirectional=True, cell_norm="terms"), 3)
    assert model.head.in_features == 2 * H
    assert model(torch.randn(T, B, F)).shape == (B, 3)
