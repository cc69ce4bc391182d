"""Configs: what YAML composes to, what is refused and how, and reading a run's config back."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from elstm.config.check import resolve, validate
from elstm.config.compose import Composer
from elstm.config.help import GROUPS, find_config_dir
from elstm.config.run_config import load_run_config
from elstm.config.schema import SCHEMAS, Config, ELSTMBNConfig
from elstm.errors import UserError


@pytest.fixture(scope="module")
def composer():
    return Composer()


def options(group):
    return sorted(path.stem for path in (find_config_dir() / group).glob("*.yaml"))


def refusal(composer, *words):
    with pytest.raises(UserError) as caught:
        composer.compose(words)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- what composes


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


# --- what is refused

WRONG = [
    # words, the key or word named, something allowed
    ("model.hidden_size=abc", "model.hidden_size=abc", "an integer at least 1"),
    ("model.hidden_size=1.5", "model.hidden_size=1.5", "an integer"),
    ("model.hidden_size=true", "model.hidden_size", "an integer"),
    ("model.hidden_size=0", "model.hidden_size=0", "at least 1"),
    ("model.hidden_size=null", "model.hidden_size=null", "an integer"),
    ("model.hidden_size=100000000000000000000000", "model.hidden_size", "at most"),
    ("model.dropout=1", "model.dropout=1.0", "below 1"),
    ("model.cell_norm=updat", "model.cell_norm=updat", "did you mean update?"),
    ("model.cell_norm=x", "model.cell_norm=x", "none, output, update"),
    ("model.forget_bias=chrno", "model.forget_bias=chrno", "or chrono"),
    ("model.gamma_c=nan", "model.gamma_c=nan", "finite"),
    ("model.gamma_c=-inf", "model.gamma_c=-inf", "finite"),
    ("model.forget_bias=1e39", "model.forget_bias=1e+39", "at most 1,000"),
    ("model.gamma_c=1e308", "model.gamma_c=1e+308", "at most 1,000"),
    ("model.gamma_ih=1e-50", "model.gamma_ih=1e-50", "within the range of float32"),
    ("model.eps=1e-30", "model.eps=1e-30", "at least 1e-12"),
    ("optimizer.eps=1e-50", "optimizer.eps=1e-50", "within the range of float32"),
    ("optimizer.lr=1e39", "optimizer.lr=1e+39", "at most 1,000"),
    ("trainer.clip_grad_norm=1e39", "trainer.clip_grad_norm=1e+39", "range of float32"),
    ("trainer.threads=100000", "trainer.threads=100000", "at most 1,024"),
    ("model.backend=cuda", "model.backend=cuda", "auto, cpu"),
    ("model.backend=torch", "model.backend=torch", "auto, cpu"),
    ("model.cell_norm=center model.gamma_c=1", "model.gamma_c=1", "write model.gamma_c=null"),
    ("model=gru model.backend=cpu", "model.backend=cpu", "auto and reference"),
    ("model=ln_lstm model.backend=triton", "model.backend=triton", "cpu, auto and reference"),
    ("trainer.device=gpu", "trainer.device=gpu", "did you mean cuda?"),
    ("trainer=cuda", "trainer=cuda", "did you mean gpu?"),
    ("optimizer.lr=0", "optimizer.lr=0", "above 0"),
    ("optimizer.lr=1e400", "optimizer.lr=inf", "finite"),
    ("seed=-1", "seed=-1", "at least 0"),
    ("seed=4294967296", "seed=4294967296", "at most 4,294,967,295"),
    ("trainer.progress=maybe", "trainer.progress=maybe", "true or false"),
    ("trainer.max_epochs=???", "trainer.max_epochs has to be given", "an integer"),
    ("modle=lstm", "modle", "did you mean model?"),
    ("model=lstmm", "model=lstmm", "did you mean lstm?"),
    ("model=null", "model=null", "elstm_bn"),
    ("model=[lstm]", "model=", "elstm_bn"),
    ("experiment=fashion_row", "experiment=fashion_row", "did you mean fashion_rows?"),
    ("model.hiden_size=3", "model.hiden_size", "did you mean model.hidden_size?"),
    ("hidden_size=3", "hidden_size", "did you mean model.hidden_size?"),
    ("+model.foo=1", "model.foo", "hidden_size, num_layers"),
    ("++foo={a: 1}", "foo", "model"),
    ("foo.bar=1", "foo.bar", "model"),
    ("hydra.mode=x", "hydra.mode", "MULTIRUN"),
    ("hydra.verbose={a: 1}", "hydra.verbose", "true, false"),
    ("hydra/launcher=x", "hydra/launcher=x", "basic"),
    ("hydra.launcher.x=1", "hydra.launcher.x", "BasicLauncher"),
    ("model=lstm model.eps=1", "model.eps", "hidden_size"),
    ("seed={a: 1}", "seed", "an integer"),
    ("seed=[1]", "seed", "an integer"),
    ("seed.x=1", "seed", "an integer"),
    ("model.name=lstm", "model.name=lstm", "choose with model=lstm"),
    ("model={name: bn_lstm_input}", "model={name", "choose with model=bn_lstm_input"),
    ("data={name: mnist}", "data={name: mnist}", "choose with data=mnist"),
    ("data.source=ts", "data.source=ts", "choose with data=ts"),
    ("trainer={resume: a}", "trainer.resume=a", "an argument of its own"),
    ("~model.eps", "~model.eps", "set KEY=VALUE"),
    ("model@other=lstm", "model@other=lstm", "no @package"),
    ("model/lstm=x", "model/lstm", "no such group"),
    ("schema/model=lstm", "schema/model", "no such group"),
    ("seed", "seed", "write KEY=VALUE"),
    ("seed=[1", "seed=[1", "write KEY=VALUE"),
    ("seed=1,2", "seed=1,2", "elstm-train -m"),
    ("seed=range(3)", "seed=range(3)", "elstm-train -m"),
    ("seed=${seeds}", "seed=${seeds}", "there is no key seeds"),
    ("seed=${seed}", "seed=${seed}", "back to itself"),
    ("data.batch_size=${data.name}", "data.batch_size", "an integer"),
    ("data.pixels_per_step=5", "data.pixels_per_step=5", "1, 2, 4, 8, 16, 32, 64"),
    ("data.train_size=5000", "data.train_size=5000", "at most 1297"),
    ("data.batch_size=2000", "data.batch_size=2000", "at most 1297"),
    ("data.train_size=20", "data.batch_size=32", "at most 20"),
    ("optimizer=sgd optimizer.nesterov=true optimizer.momentum=0", "optimizer.nesterov", "above 0"),
    ("trainer.sync_batch_stats=true model.backend=cpu", "model.backend", "auto and reference"),
    ("trainer.sync_batch_stats=true model.recompute=true", "model.recompute", "cannot be combined"),
    ("trainer.sync_batch_stats=true trainer.compile=true", "trainer.compile", "cannot be combined"),
]


@pytest.mark.parametrize(("words", "named", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(composer, words, named, allowed):
    words = words.split(" ") if "{" not in words else [words]
    line = refusal(composer, *words)
    assert named in line
    assert allowed in line


@pytest.mark.parametrize(
    "word",
    [
        "model._target_=os.system",
        "+model._target_=os.system",
        "++model={_target_: os.system}",
        'model={"_target_": os.system}',
        "data.root=_target_",
        "data.root='_target_'",
        "hydra.launcher._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "hydra.sweeper._Target_=x",
        "hydra.launcher={_args_: [1]}",
    ],
)
def test_code_is_refused(composer, word):
    assert "refused everywhere" in refusal(composer, word)


@pytest.mark.parametrize(
    "word",
    [
        "data.root=${oc.env:HOME}",
        "data.root='${oc.env:HOME}'",
        "data.root=${${x}:HOME}",
        "data.root=a${oc.decode:1}b",
        "model={hidden_size: '${oc.create:1}'}",
        "hydra.run.dir=${now:%Y}",
        "data.root=${.name}",
    ],
)
def test_resolvers_are_refused(composer, word):
    assert "no resolver" in refusal(composer, word)


@pytest.mark.parametrize(
    "word",
    [
        "hydra.job.chdir=true",
        "hydra.output_subdir=null",
        "hydra.job_logging.handlers.x.class=os.system",
        "hydra.callbacks={}",
        "+hydra.job.env_set.LD_PRELOAD=x",
        "hydra.searchpath=[file://x]",
        "hydra/job_logging=default",
        "hydra={}",
    ],
)
def test_hydras_own_settings_are_closed_but_for_a_few(composer, word):
    line = refusal(composer, word)
    assert "hydra.run.dir" in line
    assert "hydra/launcher" in line


def test_validate_checks_a_config_made_in_python(composer):
    config = composer.compose([])[1]
    validate(config)
    config.model.eps = float("nan")
    with pytest.raises(UserError, match=r"model\.eps=nan"):
        validate(config)
    wrong = dataclasses.replace(composer.compose([])[1], seed="1")
    with pytest.raises(UserError, match="seed=1: has to be an integer"):
        validate(wrong)
    config = composer.compose(["model=lstm"])[1]
    config.model.name = "elstm_bn"
    with pytest.raises(UserError, match=r"model\.name=elstm_bn"):
        validate(config)


# --- a run's own config


@pytest.fixture
def run_dir(composer, tmp_path):
    from omegaconf import OmegaConf, open_dict

    cfg, _ = composer.compose(["model.eps=1e-5", "model.forget_bias=chrono", "seed=3"])
    with open_dict(cfg):
        del cfg["hydra"]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return tmp_path


def test_the_config_of_a_run_is_read_back(composer, run_dir):
    expected = composer.compose(["model.eps=1e-5", "model.forget_bias=chrono", "seed=3"])[1]
    assert load_run_config(run_dir) == expected
    assert isinstance(load_run_config(str(run_dir)), Config)


@pytest.mark.parametrize("path", ["2020", "'1e5'", "007.csv"])
def test_a_text_that_looks_like_a_number_stays_one(composer, tmp_path, path):
    """A file, a column or a project may have the name 2020; it is a text after each reading."""
    from omegaconf import OmegaConf, open_dict

    words = ["data=table", f"data.path={path}", "data.id=1", "data.label='2e3'"]
    cfg, config = composer.compose(words)
    with open_dict(cfg):
        del cfg["hydra"]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    assert load_run_config(tmp_path) == config
    (override,) = composer.parse(["data.path=2021"])
    moved = load_run_config(tmp_path, {"data.path": override.value()})
    assert moved.data.path == "2021"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seed: 3", "seed: -3", "seed=-3"),
        ("seed: 3", "seed: !!python/object/apply:os.system [id]", "not plain YAML"),
        ("seed: 3", "seed: 3\n_target_: os.system", "_target_"),
        ("seed: 3", "seed: 3\nhydra:\n  callbacks: 1", "hydra.callbacks"),
        ("seed: 3", "seed: [", "not plain YAML"),
        ("name: elstm_bn", "name: other", "model.name=other"),
        ("name: elstm_bn", "nam: elstm_bn", "model.name has to be given"),
        ("eps: 1.0e-05", "eps: ${oc.env:HOME}", "model.eps"),
        ("eps: 1.0e-05", "epsi: 1", "model.epsi"),
    ],
)
def test_a_run_config_that_was_tampered_with_is_refused(run_dir, old, new, named):
    path = run_dir / ".hydra" / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        load_run_config(run_dir)
    assert ".hydra" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        load_run_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run folder"):
        load_run_config(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hydra").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is not a run folder"):
        load_run_config(tmp_path / "run")


def test_backends_are_those_of_the_layers():
    """The schema lists them itself, since it imports no torch."""
    from elstm.config.model_options import BACKENDS as SCHEMA_BACKENDS
    from elstm.models import RECURRENT_LAYERS
    from elstm.nn import BACKENDS

    assert set(SCHEMA_BACKENDS) == set(BACKENDS)
    served = {"gru": {"auto", "reference"}, "ln_lstm": set(BACKENDS)}
    for model, allowed in served.items():
        layer = RECURRENT_LAYERS[model]
        for backend in BACKENDS:
            if backend in allowed:
                layer(2, 3, backend=backend)
            else:
                with pytest.raises(ValueError, match=r"auto.* or reference"):
                    layer(2, 3, backend=backend)


def test_interpolations_unfold_into_a_bounded_text():
    flat = {f"k{n}": f"${{k{n + 1}}}" * 30 for n in range(9)}
    assert set(resolve({**flat, "k9": ""}).values()) == {""}  # each key is read once
    with pytest.raises(UserError, match="make a text that is too long"):
        resolve({**flat, "k9": "x"})
