"""Imports the parts of Hydra without a public interface, checked with Hydra 1.3.8.

Nothing else imports from hydra._internal. Why each is needed:

ConfigLoaderImpl, create_config_search_path
    The public compose API takes one folder for the full process. It cannot put a user's folder
    before it.
Hydra, get_args_parser
    hydra.main parses the command line itself and starts a run before its config is checked.
Callbacks
    HydraContext, which launchers and sweepers get, has to hold one.
FileConfigSource
    A user's config files are checked before Hydra reads them.
BasicLauncherConf
    Its _target_ identifies the launcher that trains one run after the other.
JobReturn._return_value
    The public property prints to the terminal before it raises the job's exception.

tests/config/test_hydra_private.py fails if one of them changes.
"""

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.utils import JobReturn

BASIC_LAUNCHER = BasicLauncherConf._target_

__all__ = [
    "BASIC_LAUNCHER",
    "Callbacks",
    "ConfigLoaderImpl",
    "FileConfigSource",
    "Hydra",
    "create_config_search_path",
    "get_args_parser",
    "raised_in",
]


def raised_in(job: JobReturn) -> Exception | None:
    """Returns the exception that a job raised, or None."""
    value = job._return_value
    return value if isinstance(value, Exception) else None
