"""Configs that are refused: wrong values, code, resolvers, settings of Hydra."""

import dataclasses

import pytest

from elstm.config.check import validate
from elstm.errors import UserError


def refusal(composer, *words):
    with pytest.raises(UserError) as caught:
        composer.compose(words)
    line = str(caught.value)
    assert "\n" not in line
    return line


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
    ("hydra.launcher.x=1", "hydra.launcher.x", "this launcher has no settings"),
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
