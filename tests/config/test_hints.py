"""Close calls get the right hint, and nothing where nothing is near."""

import re

import pytest

from elstm.commands import evaluate, predict
from elstm.config import help as pages
from elstm.config.describe import describe
from elstm.config.fields import description, leaf_values, leaves
from elstm.config.hints import all_keys
from elstm.config.schema import SCHEMAS, Config, SearchConfig, SweepConfig, TrainerConfig
from elstm.errors import near_option, show
from elstm.train import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "elstm_bn"], "KEY=VALUE, without dashes: model=elstm_bn ("),
        (["--epochs", "5"], ": trainer.max_epochs=5 ("),
        (["--resume", "R"], ": trainer.resume=R ("),
        (["--jobs", "4"], ": -m hydra/launcher=joblib hydra.launcher.n_jobs=4 ("),
        (["--batch-size=3"], ": data.batch_size=3 ("),
        (["--lr"], ": optimizer.lr=VALUE ("),
        (["--trainer.device", "cpu"], ": trainer.device=cpu ("),
        (["--device", "gpu"], ": trainer.device=cuda ("),
        (["--gpu", "model=lstm"], ": trainer=gpu ("),
        (["--wandb", "model=lstm"], ": tracking.wandb=true ("),
        (["--debug"], ": debug=quick ("),
        (["--patience", "5"], ": trainer.early_stopping_epochs=5 ("),
        (["--learning-rate", "0.1"], ": optimizer.lr=0.1 ("),
        (["--accelerator", "gpu"], ": trainer.device=cuda ("),
        (["--eps", "1e-8"], ": model.eps=1e-8 or optimizer.eps=1e-8 ("),
        (["--hidden", "64"], ": model.hidden_size=64 ("),
        (["--num-epochs", "5"], ": trainer.max_epochs=5 ("),
        (["--seeds=3"], ": seed=3 ("),
        (["--modle", "lstm"], ": model=lstm ("),
        (["--data-path", "x.npz"], ": data.path=x.npz ("),
        (["--dataset", "mnist"], ": data=mnist ("),
        (["--multirum"], "did you mean --multirun?"),
        (["--config", "x"], "did you mean --config-dir?"),
        (["--checkpoint", "x"], "unrecognized arguments: --checkpoint ("),
        (["--foo", "3"], "unrecognized arguments: --foo ("),
        (["-" + 400 * "\r" + "@x=null"], "unrecognized arguments: - @x=null ("),
    ],
)
def test_flags_of_other_programs(training, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    training.check_nothing_began(capsys.readouterr(), said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.wd=1"], "did you mean optimizer.weight_decay?"),
        (
            ["experiment=mnist_pixels", "optimizer=adam"],
            "experiment=mnist_pixels sets optimizer.alpha, which optimizer=adam does not have: ",
        ),
        (["-m", "experiment=mnist_permuted", "optimizer=adam,sgd"], "give --config-dir DIR exp"),
        (["model.gamma=1"], "did you mean model.gamma_ih, model.gamma_hh or model.gamma_c?"),
        (["model=ELSTMBN"], "did you mean elstm_bn?"),
        (["data=FashionMNIST"], "did you mean fashion_mnist?"),
        (["data=mnst"], "did you mean mnist?"),
        (["trainer.device=GPU"], "did you mean cuda?"),
        (["-m", "seed=0..3"], "-m 'seed=range(0,4)'"),
        (["seed=1-2"], "-m 'seed=range(1,3)'"),
        (["+model=lstm"], "write model=lstm"),
        (["+experiment=mnist_rows"], "write experiment=mnist_rows"),
        (["momentum=0.9"], "did you mean model.momentum"),
        (["hydra.sweep.dir=x"], "is a setting of sweeps: add -m"),
        (["hydra/launcher=joblib"], "is a setting of sweeps: add -m"),
        (["-m", "hydra.run.dir=x", "seed=0,1"], "the folder of a sweep, and of all its runs, is"),
        (["++model=lstm"], "write model=lstm"),
        (["trainer.device=CUDA"], "did you mean cuda?"),
        (["optimizer.learning_rate=1"], "did you mean optimizer.lr?"),
        (["scheduler=none"], "did you mean constant?"),
        (["tracking=wandb"], "write one of tracking.wandb=VALUE"),
        (["help"], "did you mean elstm-train --help?"),
        (["model"], "did you mean model=VALUE?"),
        (["model==lstm"], "did you mean model=lstm?"),
        (["model.hidden_size:3"], "did you mean model.hidden_size=3?"),
        (["seed = 3"], "did you mean seed=3?"),
        (["seed=", "3"], "did you mean seed=3, without a space?"),
        (["-m", "seed=0,1,"], "did you mean seed=0,1?"),
        (["hydra.run.dri=x"], "did you mean hydra.run.dir?"),
        (["hydra.launcher.n_jobs=2"], "-m hydra/launcher=joblib hydra.launcher.n_jobs=N"),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trial=3"], "hydra.sweeper.n_trials?"),
        (["+seed=3"], "write seed=3"),
        (["lstm"], "did you mean model=lstm?"),
        (["trainer.max_epochs", "5"], "did you mean trainer.max_epochs=5?"),
        (["seed", "=5"], "did you mean seed=5?"),
        (["-m", "model=lstm,", "gru"], "did you mean model=lstm,gru, without a space?"),
        (["-m", "seed=[0, 1]"], "for several values: -m seed=0,1"),
        (["seed=range(3)"], "elstm-train -m 'seed=range(3)';"),  # a shell would read parentheses
        (["model.backend=cuda"], "did you mean triton?"),
        (["model.backend=GPU"], "did you mean triton?"),
        (["trainer.precision=float16"], "did you mean fp16?"),
        (["optimizer.betas=1"], "did you mean optimizer.beta1 or optimizer.beta2?"),
        (["hidden=3"], "did you mean model.hidden_size?"),
        (["wd=1"], "did you mean optimizer.weight_decay?"),
        (["optim=adam"], "did you mean optimizer?"),
        (["dataset=mnist"], "did you mean data?"),
        (["experiments=mnist_rows"], "did you mean experiment?"),
        (["data.augment=true"], "by its keys data.augment.shift, data.augment.rotation"),
        (["foo"], "cannot read 'foo': write KEY=VALUE or GROUP=OPTION; elstm-train --help"),
        (["+model.hidden_size=3"], "write model.hidden_size=3"),
    ],
)
def test_words(training, capsys, words, said):
    assert main(words) == 1
    training.check_nothing_began(capsys.readouterr(), said)


@pytest.mark.parametrize(
    "words",
    [["model=xyzzy"], ["experiment=foo"], ["seed=3..0"], ["seed=x"], ["model.qqq=1"], ["zzz=1"]],
)
def test_no_hint_where_nothing_is_near(training, capsys, words):
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "did you mean" not in err
    assert "range(" not in err


def test_every_option_is_found_whatever_its_case():
    for options in SCHEMAS.values():
        for option in options:
            assert near_option(option.upper().replace("_", "-"), options) == option


def test_a_checkpoint_or_an_image_in_the_place_of_a_run(training, capsys, tmp_path):
    assert main(["hydra.run.dir=run"]) == 0
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "best.pt").touch()
    capsys.readouterr()
    assert evaluate.main(["run/checkpoints/best.pt"]) == 1
    assert "did you mean its run, run?" in capsys.readouterr().err
    assert main(["trainer.resume=run/train.log"]) == 1
    assert "did you mean its run, run?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main(["image.png"])
    assert "RUN_DIR, a run's folder, is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main(["run"])
    assert "IMAGE is missing" in capsys.readouterr().err


def test_help_describes_keys_and_groups(training, capsys):
    for words, parts in (
        (
            ["--help", "model.gamma_c"],
            ["\n    Initial gain", "default null", "with model=ln_lstm"],
        ),
        (["--help", "model.forget_bias"], ["or chrono; default chrono", "or chrono; default 1.0"]),
        (
            ["--help", "optimizer.lr"],
            ["default 0.01\n    with optimizer=adam, adamw", "default 0.001"],
        ),
        (["--help", "data.path"], ["text; no default\n"]),
        (["--help", "hydra.sweeper"], ["hydra.sweeper.n_trials\n    Number of trials"]),
        (["--help", "trainer"], ["trainer.threads\n", "an integer at least 1 and at most 1,024"]),
        (["seed", "-h"], ["seed\n    Seed of every", "\n    an integer at least 0"]),
        (["--help", "data=fashion_mnist"], ["usage: elstm-train"]),
        (["--help", "debug"], ["  debug=       overfit         Trains on one batch"]),
    ):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(part in out for part in parts), out
    for topic, near in (
        ("optimizer.wd", "optimizer.weight_decay"),
        ("experiments", "experiment"),
        ("hydra.sweeper.n_trial", "hydra.sweeper.n_trials"),
    ):
        assert main(["--help", topic]) == 1
        training.check_nothing_began(capsys.readouterr(), f"did you mean {near}?")


def test_every_key_can_be_described():
    text = "\n".join(map(describe, [*SCHEMAS, "trainer", "tracking", "sweep", "seed"]))
    assert [line for line in text.splitlines() if not line.startswith(" ")] == all_keys()
    assert max(map(len, text.splitlines())) <= 80


def test_every_key_has_a_description():
    """Its first letter is a capital, and it ends with a full stop."""
    owners = [schema for options in SCHEMAS.values() for schema in options.values()]
    for owner in [*owners, TrainerConfig, SweepConfig, SearchConfig]:
        for name, holder, field in leaves(owner):
            if name != "_target_":
                text = description(holder, field.name)
                assert re.fullmatch(r"[A-Z1].{10,}\.", text), (owner, name, text)
    assert description(Config, "seed")


@pytest.mark.parametrize("words", [[], ["model=gru", "optimizer=sgd", "scheduler=step"]])
def test_the_default_in_the_help_is_that_of_a_run(training, words):
    """A file in conf/ may set another default than the field."""
    assert main(words) == 0
    config = training.calls[0].config
    for group in (*SCHEMAS, "trainer"):
        node = getattr(config, group)
        text = f"{describe(group)}\n"
        for key, value in leaf_values(node).items():
            if key == "name":
                continue
            block = re.split(r"\n(?! )", text.partition(f"{group}.{key}\n")[2])[0] + "\n"
            block = block.replace("\n      ", " ")  # broken lines
            kinds = re.findall(r"; (?:no )?default ?(.*)\n(?:    with \w+=(.*)\n)?", block)
            shown = next(d for d, names in kinds if not names or node.name in names.split(", "))
            assert shown == show(value), key


def test_help_has_whole_descriptions(capsys):
    assert main(["--help"]) == 0
    groups = capsys.readouterr().out.partition("groups (")[2].partition("keys: ")[0]
    assert " ...\n" not in groups
    assert max(map(len, groups.splitlines())) <= 80
    for group in pages.GROUPS:
        for path in (pages.find_config_dir() / group).glob("*.yaml"):
            assert pages.describe(path).endswith("."), path


def test_a_path_to_copy_is_never_shortened(training, capsys, tmp_path):
    assert main([]) == 0
    (folder,) = (tmp_path / "outputs").glob("*/*/*/*")
    assert len(str(folder)) > 80  # an error message shortens other values of this length
    capsys.readouterr()
    assert main([f"trainer.resume={folder / 'status.json'}"]) == 1
    assert f"did you mean its run, {folder}?" in capsys.readouterr().err
    values = ",".join(str(seed) for seed in range(60))
    assert main([f"seed={values}"]) == 1
    assert f"elstm-train -m seed={values};" in capsys.readouterr().err
