"""Settings that were removed: old run folders load, and nobody sets them any more."""

import re

import pytest

from elstm.config.check import config_from
from elstm.config.compose import Composer, flatten
from elstm.config.fields import leaves
from elstm.config.removed import REMOVED
from elstm.config.run_config import load_run_config
from elstm.config.schema import SCHEMAS, TrainerConfig
from elstm.errors import UserError
from elstm.train import main

OTHER = {
    "model.renorm": "true",
    "model.renorm_start": "7",
    "model.renorm_ramp": "500.5",
    "model.ghost_batch_size": "16",
    "trainer.on_nonfinite": "skip",
}


def yaml_of(value):
    return {False: "false", None: "null"}.get(value, str(value))


@pytest.fixture
def run_dir(tmp_path):
    """The folder of a run of today, whose config `with_settings` can add to."""
    from omegaconf import OmegaConf, open_dict

    cfg, _ = Composer().compose(["model.hidden_size=100"])
    with open_dict(cfg):
        del cfg["hydra"]
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return tmp_path


def with_settings(run_dir, settings):
    path = run_dir / ".hydra" / "config.yaml"
    text = path.read_text()
    for key, value in settings.items():
        group, _, name = key.partition(".")
        text = re.sub(rf"(?m)^{group}:\n", f"{group}:\n  {name}: {value}\n", text)
    path.write_text(text)
    return run_dir


def test_no_setting_of_today_is_in_the_table():
    today = {f"trainer.{name}" for name in TrainerConfig.__dataclass_fields__}
    for group, schemas in SCHEMAS.items():
        today |= {f"{group}.{name}" for s in schemas.values() for name, _, _ in leaves(s)}
    assert not today & REMOVED.keys()
    assert OTHER.keys() == REMOVED.keys()


def test_a_stored_config_with_removed_settings_at_their_defaults_loads(run_dir):
    expected = load_run_config(run_dir)
    with_settings(run_dir, {key: yaml_of(default) for key, (default, _) in REMOVED.items()})
    assert load_run_config(run_dir) == expected


@pytest.mark.parametrize("key", REMOVED)
def test_at_another_value_it_is_refused_and_the_commit_is_named(run_dir, key):
    with_settings(run_dir, {key: OTHER[key]})
    with pytest.raises(UserError, match=re.escape(f"{key}={OTHER[key]}")) as caught:
        load_run_config(run_dir)
    assert str(caught.value).endswith(f"supports it is {REMOVED[key][1]}: check out that commit")


@pytest.mark.parametrize("value", ["0", "null", "''"])
def test_a_default_is_compared_with_its_type(run_dir, value):
    with pytest.raises(UserError, match=r"model\.renorm="):
        load_run_config(with_settings(run_dir, {"model.renorm": value}))


def test_an_interpolation_is_resolved_first(run_dir):
    with_settings(run_dir, {"model.renorm_start": "${model.hidden_size}"})
    assert load_run_config(run_dir).model.hidden_size == 100


@pytest.mark.parametrize(
    "words",
    [
        ["model.renorm=true"],
        ["+model.renorm=false"],
        ["++trainer.on_nonfinite=stop"],
        ["model={renorm: true}"],
        ["renorm=true"],
        ["-m", "trainer.on_nonfinite=stop,skip", "seed=0,1"],
        ["-m", "hydra/sweeper=optuna", "model.renorm_start=interval(1,100)"],
        ["--config-dir", "extra", "experiment=old"],
    ],
    ids=" ".join,
)
def test_a_command_that_sets_one_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extra" / "experiment").mkdir(parents=True)
    (tmp_path / "extra" / "experiment" / "old.yaml").write_text(
        "# @package _global_\nmodel:\n  ghost_batch_size: 8\n"
    )
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "was removed; the last commit that has it is d8d01eb" in err
    assert not (tmp_path / "outputs").exists()


def test_a_name_that_only_resembles_one_is_not_called_removed():
    with pytest.raises(UserError, match=r"model\.renorm_star: there is no such key; allowed in"):
        Composer().compose(["model.renorm_star=3"])


def test_a_composed_config_has_no_removed_settings():
    flat = flatten(Composer().compose([])[0])
    with pytest.raises(UserError, match=r"trainer\.on_nonfinite: this setting was removed"):
        config_from({**flat, "trainer.on_nonfinite": "stop"})
