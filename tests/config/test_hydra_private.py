"""Hydra's private parts are imported by one file, and are as they were when it was written."""

import copy
import inspect
import re
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigSource
from hydra.types import HydraContext, RunMode

import elstm
from elstm.config import hydra_private
from elstm.config.compose import Composer
from elstm.config.schema import TrainerConfig

ROOT = Path(elstm.__file__).parent
# What is called, with the parameters that are given.
CALLS = {
    hydra_private.ConfigLoaderImpl: ["config_search_path"],
    hydra_private.ConfigLoaderImpl.load_configuration: [
        "config_name", "overrides", "run_mode", "validate_sweep_overrides",
    ],
    hydra_private.ConfigLoaderImpl.get_group_options: ["group_name", "results_filter"],
    hydra_private.create_config_search_path: ["search_path_dir"],
    hydra_private.get_args_parser: [],
    hydra_private.Hydra: ["task_name", "config_loader"],
    hydra_private.Hydra.run: ["config_name", "task_function", "overrides"],
    hydra_private.Hydra.show_cfg: ["config_name", "overrides", "cfg_type", "package", "resolve"],
    hydra_private.Hydra.show_info: ["info", "config_name", "overrides"],
    hydra_private.Hydra.shell_completion: ["config_name", "overrides"],
    hydra_private.Hydra.hydra_help: ["config_name", "args_parser", "args"],
    hydra_private.FileConfigSource.load_config: ["config_path"],
    HydraContext: ["config_loader", "callbacks"],
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_a_private_part_takes_the_same_arguments(call):
    parameters = inspect.signature(call).parameters
    assert [name for name in CALLS[call] if name not in parameters] == []
    required = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
    ]
    assert set(required) <= {"self", *CALLS[call]}


def test_private_parts_do_what_they_did():
    assert issubclass(hydra_private.FileConfigSource, ConfigSource)
    assert hydra_private.BASIC_LAUNCHER in Plugins.instance().class_name_to_class
    search_path = hydra_private.create_config_search_path(str(ROOT))
    loader = hydra_private.ConfigLoaderImpl(search_path)
    tree = loader.load_configuration(None, [], RunMode.MULTIRUN, validate_sweep_overrides=False)
    assert tree.hydra.launcher._target_ == hydra_private.BASIC_LAUNCHER
    assert dict(tree.hydra.runtime.choices)["hydra/sweeper"] == "basic"
    error = ValueError()
    job = JobReturn(status=JobStatus.FAILED)
    job.return_value = error
    assert hydra_private.raised_in(job) is error
    hydra_private.Callbacks().on_run_start(config=tree, config_name=None)


def test_compositions_share_the_store_and_leave_it_as_it_was():
    composer = Composer()
    assert copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()
    first = composer.load(["model.hidden_size=7"], RunMode.RUN)
    first.model.hidden_size = first.trainer.max_epochs = 8
    schema = ConfigStore.instance().load("schema.yaml").node
    assert schema.trainer.max_epochs == TrainerConfig().max_epochs
    again = composer.load([], RunMode.RUN)
    assert (again.model.hidden_size, again.trainer.max_epochs) == (128, 10)


# Private parts of the libraries that the runner drives, each with the one file that may use it.
PRIVATE = {
    r"hydra\._internal": "config/hydra_private.py",
    r"job\._(?!_)\w+": "config/hydra_private.py",
    r"override\._(?!_)\w+": None,
    r"(study|trial|storage|optuna)\._\w+": None,
    r"JobEnvironment\._\w+|submitit\._\w+": None,
    r"joblib\.externals|joblib\._\w+": None,
    r"(AcceleratorState|GradientState|PartialState)\._\w+": "training/accelerate_private.py",
}


@pytest.mark.parametrize("pattern", PRIVATE)
def test_private_interfaces_have_one_file(pattern):
    users = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if re.search(rf"(?<!\w){pattern}", path.read_text(encoding="utf-8"))
    }
    assert users <= {PRIVATE[pattern]}
