"""Reading the config of a run back."""

import re

import pytest

from elstm.config.check import resolve
from elstm.config.run_config import load_run_config
from elstm.config.schema import Config
from elstm.errors import UserError


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
