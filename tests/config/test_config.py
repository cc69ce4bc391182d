"""Tests what arguments and files of conf/ compose to."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from elstm.config.help import GROUPS, find_config_dir
from elstm.config.schema import SCHEMAS, ELSTMBNConfig


def options(group):
    return sorted(path.stem for path in (find_config_dir() / group).glob("*.yaml"))


@pytest.mark.parametrize("group", SCHEMAS)
def test_every_option_composes_to_its_dataclass(composer, group):
    assert options(group) == sorted(SCHEMAS[group])
    for name, schema in SCHEMAS[group].items():
        given = {"data.path": "x/own set.csv", "data.id": "i", "data.label": "l"}
        fields = schema.__dataclass_fields__
        own = [f"{key}='{value}'" for key, value in given.items() if key[5:] in fields]
        _, config = composer.compose([f"{group}={name}", *(own if group == "data" else ())])
        node = getattr(config, group)
        assert type(node) is schema
        assert getattr(node, "source", node.name) == name
        if hasattr(node, "source"):
            assert node.name == "own-set"


def test_the_default(composer):
    _, config = composer.compose([])
    assert (config.model.name, config.data.name, config.optimizer.name) == (
        "elstm_bn", "digits", "adamw",
    )  # fmt: skip
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.decay_all) == (0.01, 0.1, False)
    assert config.scheduler.name == "cosine"
    assert config.model == ELSTMBNConfig(forget_bias="chrono", input_bias="chrono")
    assert config.seed == 0
    assert config.trainer.resume is None


def test_input_only_is_laurents(composer):
    _, config = composer.compose(["model=bn_lstm_input"])
    assert config.model.cell_norm == "none"
    assert (config.model.normalize_input, config.model.normalize_hidden) == (True, False)


@pytest.mark.parametrize("group", ["trainer", "debug"])
def test_every_other_option_composes(composer, group):
    for name in options(group):
        composer.compose([f"{group}={name}"])


def flat(config):
    """{"model.hidden_size": 128, ...}"""
    tree = dataclasses.asdict(config)
    seed = {"seed": tree.pop("seed")}
    return seed | {f"{group}.{key}": v for group, node in tree.items() for key, v in node.items()}


# What conf/per_model/EXPERIMENT-MODEL.yaml set without a mention on the command line. The settings
# of Cooijmans et al. are model=bn_lstm_published since, and the others are typed where wanted.
PER_MODEL = {
    **{
        (f"mnist_{order}", model): {
            "model.forget_bias", "model.input_bias", "model.eps",
            "model.gamma_ih", "model.gamma_hh", "model.gamma_c",
        }
        for order in ("pixels", "permuted")
        for model in ("bn_lstm", "bn_lstm_input")
    },
    ("mnist_pixels", "lstm"): {"model.forget_bias", "model.input_bias"},
    ("mnist_permuted", "lstm"): {"model.forget_bias", "model.input_bias"},
    ("mnist_best", "elstm_bn"): {"model.gamma_c"},
    ("fashion_best", "elstm_bn"): {"model.gamma_c"},
}  # fmt: skip


@pytest.fixture(scope="module")
def before():
    """The configs of every experiment with every model, composed while conf/per_model/ existed.

    experiments_before.json holds the settings without an experiment (`models` and `rest`), and for
    each experiment what differs from them: for all models and for one.
    """
    table = json.loads(Path(__file__).with_name("experiments_before.json").read_text())

    def config(experiment, model):
        row = table["experiments"][experiment]
        rest = {k: v for k, v in table["rest"].items() if k not in row.get("gone", ())}
        both = row["all_models"] | row["one_model"].get(model, {})
        return table["models"][model] | rest | row["rest"] | both

    return table, config


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_composes_to_what_it_did(composer, before, experiment, monkeypatch):
    """Compares with a table of an earlier version, on the settings that both have."""
    monkeypatch.delenv("ELSTM_DATA", raising=False)
    table, earlier = before
    many = composer.many()
    # Every model in one experiment, two models in the others, to save time.
    models = SCHEMAS["model"] if experiment == "mnist_pixels" else ("lstm", "elstm_bn")
    for model in models:
        now = flat(many([f"experiment={experiment}", f"model={model}"]))
        assert now["model.name"] == model
        if model not in table["models"]:
            continue
        then = earlier(experiment, model)
        both = now.keys() & then.keys()
        assert len(both) > 40
        expected = PER_MODEL.get((experiment, model), set())
        assert {key for key in both if now[key] != then[key]} == expected
        default = flat(many([f"model={model}"]))
        assert {key: now[key] for key in expected} == {key: default[key] for key in expected}
    default = composer.compose([f"experiment={experiment}"])[1].model.name
    published = {"mnist_pixels", "mnist_permuted"}
    kept = table["experiments"][experiment]["default_model"]
    assert default == (kept if experiment not in published else "bn_lstm_published")


@pytest.mark.parametrize("experiment", ["mnist_pixels", "mnist_permuted"])
def test_the_published_settings_are_a_model(composer, before, experiment):
    now, then = (
        flat(composer.compose([f"experiment={experiment}"])[1]),
        before[1](experiment, "bn_lstm"),
    )
    changed = {key for key in now.keys() & then.keys() if now[key] != then[key]}
    assert changed - {"data.root"} == {"model.name"}
    model = composer.compose(["model=bn_lstm_published"])[1].model
    assert (model.gamma_ih, model.gamma_hh, model.gamma_c, model.eps) == (0.1, 0.1, 0.1, 1e-5)
    assert (model.forget_bias, model.input_bias) == (1.0, 0.0)


def test_a_model_is_changed_by_overrides_alone(composer):
    """No file is chosen by a pair of options: each setting follows from one option or one key."""
    main = (find_config_dir() / "config.yaml").read_text()
    assert not re.search(r"- .*\$\{", main.partition("hydra:")[0])
    assert sorted(p.name for p in find_config_dir().iterdir() if p.is_dir() and p.name != "study"
                  and not p.name.startswith("_")) == sorted([*GROUPS, "hydra"])  # fmt: skip


def test_values_are_converted_to_their_types(composer):
    _, config = composer.compose(["model.forget_bias=3", "optimizer.lr=1", "seed=7"])
    assert [type(v) for v in (config.model.forget_bias, config.optimizer.lr, config.seed)] == [
        float, float, int,
    ]  # fmt: skip
    _, config = composer.compose(["model={hidden_size: 5, eps: 1e-3}", "model.momentum=null"])
    assert (config.model.hidden_size, config.model.eps, config.model.momentum) == (5, 1e-3, None)


def test_one_key_may_follow_another(composer):
    _, config = composer.compose(["data.batch_size=50", "data.eval_batch_size=${data.batch_size}"])
    assert config.data.eval_batch_size == 50


@pytest.mark.parametrize(("value", "root"), [(None, "data"), ("", "data"), ("/x y", "/x y")])
def test_the_data_root_follows_the_environment(composer, monkeypatch, value, root):
    monkeypatch.delenv("ELSTM_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("ELSTM_DATA", value)
    assert composer.compose(["data=mnist"])[1].data.root == root
