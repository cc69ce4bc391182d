"""BNLSTM and ELSTMBN against NumPy, in torch.nn.LSTM's layouts; their gradients; their errors."""

import inspect
import re

import numpy as np
import pytest
import torch
from numpy_lstm import assert_close, lstm, packed, randomize, sequences
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from elstm.nn import BNLSTM, CELL_NORMS, ELSTMBN, LSTM
from elstm.nn.bn_lstm import NormalizedLSTM

T, B, F, H = 6, 5, 3, 4
LENGTHS = [2, 6, 4, 1, 4]  # unsorted; in the last two steps one sequence is alive
DEEP = {"num_layers": 2, "bidirectional": True}


def make(cell_norm="update", rows_tracked=None, **options):
    sizes = {"max_steps": T, "dtype": torch.float64} | options
    layer = ELSTMBN(F, H, cell_norm=cell_norm, backend="reference", **sizes)
    return randomize(layer, rows_tracked=rows_tracked)


def check(layer, x, *, state=None, lengths=None):
    """The layer's three results, in its own layout, against NumPy's."""
    given = None if state is None else [s.numpy() for s in state]
    expected = lstm(layer, x.numpy(), *(given or ()), lengths=lengths)
    input = x.transpose(0, 1) if layer.batch_first else x
    if lengths is not None:
        input = nn.utils.rnn.pack_padded_sequence(
            input, torch.tensor(lengths), batch_first=layer.batch_first, enforce_sorted=False
        )
    output, (h_n, c_n) = layer(input, state)
    if lengths is not None:
        assert isinstance(output, PackedSequence)
        assert torch.equal(output.sorted_indices, input.sorted_indices)
        output, _ = pad_packed_sequence(output, layer.batch_first, total_length=len(x))
    output = output.transpose(0, 1) if layer.batch_first else output
    assert_close(output, expected.output)
    assert_close(h_n, expected.h_n)
    assert_close(c_n, expected.c_n)


def initial_state(layer, size=B):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    return tuple(sequences(rows, size, layer.hidden_size, seed=seed) for seed in (1, 2))


SHAPES = {
    "one layer": ({}, None),
    "two layers, both directions": (DEEP, None),
    "packed": ({}, LENGTHS),
    "packed, two layers, both directions": (DEEP, LENGTHS),
    "longer than max_steps": (DEEP | {"max_steps": 4}, None),
    "packed, longer than max_steps": (DEEP | {"max_steps": 3}, LENGTHS),
    "packed, beyond what was tracked": (DEEP | {"rows_tracked": 2}, LENGTHS),
    "never trained": (DEEP | {"rows_tracked": 0}, None),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_follows_the_equations(cell_norm, shape, training):
    options, lengths = SHAPES[shape]
    layer = make(cell_norm, **options).train(training)
    check(layer, sequences(T, B, F), state=initial_state(layer), lengths=lengths)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"normalize_input": False},
        {"normalize_hidden": False},
        {"normalize_input": False, "normalize_hidden": False, "bias": False},
        {"learn_initial_state": True, "num_layers": 2, "bidirectional": True},
        {"batch_first": True, "bidirectional": True},
        {"eps": 1e-5},
    ],
    ids=str,
)
def test_options(options, training):
    for cell_norm in ("none", "output", "update", "center"):
        layer = make(cell_norm, **options).train(training)
        names = dict(layer.named_parameters())
        assert ("bias_l0" in names) == options.get("bias", True)
        assert ("norm_ih_l0.weight" in names) == options.get("normalize_input", True)
        assert ("norm_hh_l0.weight" in names) == options.get("normalize_hidden", True)
        for lengths in (None, LENGTHS):
            check(layer, sequences(T, B, F), lengths=lengths)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), (1, 2, 3, 7), (2, 2, 1, 5), (3, 2, 5, 3)], ids=str)
def test_small_and_odd_sizes(sizes, training):
    steps, size, features, units = sizes
    for cell_norm in CELL_NORMS:
        layer = ELSTMBN(features, units, cell_norm=cell_norm, max_steps=2, dtype=torch.float64)
        check(randomize(layer).train(training), sequences(steps, size, features))


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_without_a_batch_dimension(batch_first):
    layer = make("terms", batch_first=batch_first, **DEEP).eval()
    x, state = sequences(T, F), [s[:, 0] for s in initial_state(layer)]
    output, (h_n, c_n) = layer(x, tuple(state))
    expected = lstm(layer, x[:, None].numpy(), *(s[:, None].numpy() for s in state))
    assert_close(output, expected.output[:, 0])
    assert_close(h_n, expected.h_n[:, 0])
    assert_close(c_n, expected.c_n[:, 0])
    assert_close(layer(x)[0], lstm(layer, x[:, None].numpy()).output[:, 0])


def test_bnlstm_is_the_output_reading_and_elstmbn_the_update():
    for layer_class, cell_norm in ((BNLSTM, "output"), (ELSTMBN, "update")):
        layer = randomize(layer_class(F, H, max_steps=T, dtype=torch.float64))
        assert layer.cell_norm == cell_norm
        twin = make(cell_norm)
        assert layer.state_dict().keys() == twin.state_dict().keys()
        x = sequences(T, B, F)
        assert_close(layer(x)[0], twin(x)[0].detach().numpy())


@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_names_and_shapes_of_parameters_and_statistics(cell_norm):
    layer = ELSTMBN(F, H, cell_norm=cell_norm, max_steps=7, **DEEP)
    expected = {}
    for k, features in enumerate((F, 2 * H)):
        for end in ("", "_reverse"):
            expected[f"weight_ih_l{k}{end}"] = (4 * H, features)
            expected[f"weight_hh_l{k}{end}"] = (4 * H, H)
            expected[f"bias_l{k}{end}"] = (4 * H,)
            widths = {"norm_ih": 4 * H, "norm_hh": 4 * H}
            if cell_norm != "none":
                widths["norm_c"] = H
            if cell_norm in ("terms", "update_output"):
                widths["norm_c2"] = H
            for name, width in widths.items():
                norm = f"{name}_l{k}{end}"
                expected[f"{norm}.running_mean"] = (7, width)
                if cell_norm != "center" or name != "norm_c":
                    expected[f"{norm}.weight"] = (width,)
                    expected[f"{norm}.running_var"] = (7, width)
                if "norm_c" in name:
                    expected[f"{norm}.bias"] = (width,)
                expected[f"{norm}.num_batches_tracked"] = (7,)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected


def test_eps_of_each_norm():
    """Checks the default eps, which is at least γ² for a carried result, so no deviation grows."""
    for cell_norm, carried in {"output": False, "increment": False, "update": True}.items():
        layer = ELSTMBN(F, H, cell_norm=cell_norm)
        assert layer.norm_ih_l0.eps == layer.norm_hh_l0.eps == 0.1
        assert layer.norm_c_l0.eps == (9.0 if carried else 0.1)
        assert (layer.norm_c_l0.weight == (3 if carried else 1)).all()
    assert (ELSTMBN(F, H, cell_norm="update_output").norm_c2_l0.weight == 1).all()
    assert (BNLSTM(F, H).norm_c_l0.weight == 1).all()
    for cell_norm in ("terms", "carry", "update_output"):
        norms = dict(ELSTMBN(F, H, cell_norm=cell_norm, gamma_c=2.0).named_children())
        assert norms["norm_c_l0"].eps == 4.0
        assert "norm_c2_l0" not in norms or norms["norm_c2_l0"].eps == 0.1
    assert ELSTMBN(F, H, gamma_c=0.1).norm_c_l0.eps == 0.1
    layer = ELSTMBN(F, H, cell_norm="terms", eps=1e-5)
    assert {module.eps for module in layer.children()} == {1e-5}


def test_the_signature_is_torch_s_and_then_keywords():
    theirs = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
    theirs += ["bidirectional", "proj_size", "device", "dtype"]
    ours = {"max_steps", "eps", "momentum", "gamma_ih", "gamma_hh", "gamma_c", "forget_bias"}
    ours |= {"input_bias", "state_noise", "learn_initial_state", "normalize_input"}
    ours |= {"normalize_hidden", "recurrent_init", "backend"}
    ours |= {"sync_batch_stats", "process_group", "recompute"}
    for layer_class, extra in ((BNLSTM, set()), (ELSTMBN, {"cell_norm"})):
        parameters = inspect.signature(layer_class).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == theirs
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == ours | extra
        layer = layer_class(3, 4, 2, False, True, 0.1, True, 0, "cpu", torch.float64)
        assert (layer.num_layers, layer.bias, layer.batch_first) == (2, False, True)
        assert layer.bidirectional
        assert layer.weight_ih_l1_reverse.dtype == torch.float64


@pytest.mark.parametrize("layer_class", [LSTM, BNLSTM, ELSTMBN])
def test_help_begins_with_the_equations_and_explains_every_argument(layer_class):
    text = inspect.getdoc(layer_class)
    first, equations, *_ = text.split("\n\n")
    assert first.startswith("Computes ")
    assert equations.lstrip().startswith("z_t = ")
    arguments = text.partition("Args:")[2].partition("Call:")[0]
    explained = set(re.findall(r"\w+", " ".join(re.findall(r"(?m)^    ([\w, ]+):", arguments))))
    assert set(inspect.signature(layer_class).parameters) <= explained


# --- what training adds


def test_dropout_falls_between_the_layers_alone():
    layer = make(num_layers=2, dropout=1.0)
    x = sequences(T, B, F)
    output, (h_n, _) = layer(x)
    below, above = make(), make()  # the two layers by themselves
    for k, alone in enumerate((below, above)):
        values = layer.state_dict()
        alone.load_state_dict(
            {name: values[name.replace("_l0", f"_l{k}")] for name in alone.state_dict()}
            | {"weight_ih_l0": values[f"weight_ih_l{k}"][:, :F]}
        )
    assert_close(h_n[0], lstm(below, x.numpy()).h_n[0])
    assert_close(output, lstm(above, np.zeros((T, B, F))).output)  # all of its input is dropped
    check(layer.eval(), x)
    with pytest.warns(UserWarning, match=r"dropout=0.5 has no effect with num_layers=1"):
        one = make(dropout=0.5)
    check(one, x)  # with one layer there is no between

    half = make(num_layers=2, dropout=0.5)
    torch.manual_seed(3)
    first = half(x)[0]
    assert not torch.equal(first, half(x)[0])
    torch.manual_seed(3)
    assert torch.equal(first, half(x)[0])


def test_state_noise_is_added_to_h_0_in_training():
    layer = make(state_noise=0.5)
    h_0, c_0 = initial_state(layer)
    torch.manual_seed(7)
    noise = 0.5 * torch.randn(1, B, H, dtype=torch.float64)
    x = sequences(T, B, F)
    expected = lstm(layer, x.numpy(), (h_0 + noise).numpy(), c_0.numpy())
    torch.manual_seed(7)
    assert_close(layer(x, (h_0, c_0))[0], expected.output)
    torch.manual_seed(7)
    zero = np.zeros((1, B, H))
    assert_close(layer(x)[0], lstm(layer, x.numpy(), noise.numpy(), zero).output)
    check(layer.eval(), x)


# --- gradients, every entry: to the input, the initial state and all parameters


def gradcheck(layer, x, state, **options):
    names, parameters = zip(*layer.named_parameters(), strict=True)
    given = [] if state is None else list(state)

    def run(x, *rest):
        hx = tuple(rest[: len(given)]) or None
        values = dict(zip(names, rest[len(given) :], strict=True))
        output, (h_n, c_n) = functional_call(layer, values, (x, hx))
        return output, h_n, c_n

    inputs = [v.detach().clone().requires_grad_() for v in (x, *given, *parameters)]
    assert torch.autograd.gradcheck(run, inputs, check_undefined_grad=False, **options)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("cell_norm", CELL_NORMS)
def test_gradients(cell_norm, training):
    layer = ELSTMBN(1, 2, cell_norm=cell_norm, max_steps=2, dtype=torch.float64)
    randomize(layer).train(training)
    gradcheck(layer, sequences(3, 3, 1), initial_state(layer, 3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_of_two_layers_and_both_directions_with_a_learned_state(training):
    layer = make("output", learn_initial_state=True, **DEEP).train(training)
    gradcheck(layer, sequences(2, 3, F), None, fast_mode=True)


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cell_norm": "updates"},
            r"none, output, update, increment, terms, carry, update_output, center",
        ),
        ({"cell_norm": "center", "gamma_c": 1.0}, r"gamma_c .*None .*cell_norm='center'.*got 1\.0"),
        ({"proj_size": 2}, r"proj_size must be 0.*got 2"),
        ({"input_size": 0}, r"input_size .*at least 1, got 0"),
        ({"hidden_size": -1}, r"hidden_size .*at least 1, got -1"),
        ({"hidden_size": 2.5}, r"hidden_size .*got 2\.5"),
        ({"num_layers": 0}, r"num_layers .*got 0"),
        ({"max_steps": 0}, r"max_steps .*got 0"),
        ({"max_steps": 2.0}, r"max_steps .*got 2\.0"),
        ({"eps": 0}, r"eps .*> 0.*got 0"),
        ({"eps": float("nan")}, r"eps .*got nan"),
        ({"momentum": 0.0}, r"momentum .*\(0, 1\], or None; got 0\.0"),
        ({"momentum": 1.5}, r"momentum .*got 1\.5"),
        ({"gamma_ih": float("inf")}, r"gamma_ih .*finite.*got inf"),
        ({"gamma_hh": float("nan")}, r"gamma_hh .*finite.*got nan"),
        ({"gamma_c": float("inf")}, r"gamma_c .*finite.*got inf"),
        ({"gamma_c": 1e200}, r"gamma_c .*within ±1e\+18, got 1e\+200"),
        ({"input_bias": -1e39}, r"input_bias .*within ±1e\+18 .*got -1e\+39"),
        ({"forget_bias": "chrono2"}, r"forget_bias .*\"chrono\", got 'chrono2'"),
        ({"input_bias": float("nan")}, r"input_bias .*got nan"),
        ({"recurrent_init": "eye"}, r"recurrent_init .*orthogonal, identity; got 'eye'"),
        ({"state_noise": -0.1}, r"state_noise .*>= 0, got -0\.1"),
        ({"dropout": 1.5}, r"dropout .*\[0, 1\], got 1\.5"),
        ({"backend": "cudn"}, r"backend must be one of auto, .*reference; got 'cudn'"),
        # Values of a wrong type are wrong values.
        ({"eps": "x"}, r"eps .*got 'x'"),
        ({"momentum": "x"}, r"momentum .*got 'x'"),
        ({"gamma_hh": None}, r"gamma_hh .*got None"),
        ({"state_noise": "x"}, r"state_noise .*got 'x'"),
        ({"dropout": "x"}, r"dropout .*got 'x'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line_that_names_it(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ELSTMBN(**{"input_size": F, "hidden_size": H} | options)
    assert "\n" not in str(caught.value)


def test_bnlstm_refuses_a_cell_norm():
    with pytest.raises(ValueError, match="cell_norm"):
        BNLSTM(F, H, cell_norm="update")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((T, B, F + 1), r"3 features .*got 4"),
        ((T, F - 1), r"3 features .*got 2"),
        ((T, B, 1, F), r"2-D or 3-D, got 4-D"),
        ((F,), r"2-D or 3-D, got 1-D"),
        ((0, B, F), r"at least one step, .*\(0, 5, 3\)"),
    ],
    ids=str,
)
def test_a_wrong_input_is_one_line(shape, message):
    with pytest.raises(ValueError, match=message):
        make().eval()(torch.zeros(shape, dtype=torch.float64))


def test_a_wrong_packed_input_is_one_line():
    with pytest.raises(ValueError, match=r"3 features .*got 4"):
        make()(packed(sequences(T, B, F + 1), LENGTHS))


@pytest.mark.parametrize("shapes", [((1, B, H), (1, B, H + 1)), ((2, B, H), (1, B, H))], ids=str)
def test_a_wrong_state_is_one_line(shapes):
    state = tuple(torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    with pytest.raises(ValueError, match=r"[hc]_0 must have shape \(1, 5, 4\).*got \("):
        make()(sequences(T, B, F), state)
    with pytest.raises(ValueError, match=r"h_0 must have shape \(1, 1, 4\).*got \(1, 1, 5\)"):
        make().eval()(sequences(T, F), (torch.zeros(1, H + 1), torch.zeros(1, H + 1)))


def test_a_training_batch_of_one_is_refused():
    layer = make()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for one in (sequences(T, 1, F), sequences(T, F), packed(sequences(T, 1, F), [3])):
        with pytest.raises(ValueError, match=r"at least 2 sequences .*got 1.*drop_last"):
            layer(one)
        layer.eval()(one)
        layer.train()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    # Without any normalisation there is nothing that a batch of one could spoil.
    plain = make("none", normalize_input=False, normalize_hidden=False)
    check(plain, sequences(T, 1, F))


def test_last_backend():
    layer = make()
    assert layer.last_backend is None
    layer(sequences(T, B, F))
    assert layer.last_backend == "reference"
    assert isinstance(layer, NormalizedLSTM)
