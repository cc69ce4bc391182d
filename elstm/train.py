"""Runs `elstm-train`: parses, composes and checks the config, creates the run folder, and trains.

Hydra composes, creates the folder and launches. It is called here and not by `hydra.main`, so that
everything is checked before a folder is created, and every error is one message.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import elstm
from elstm.cli import Parser, command
from elstm.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from elstm.config.compose import Composer

PROG = "elstm-train"
RESUME = ("trainer.resume=", "+trainer.resume=", "++trainer.resume=")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(arguments))


def _main(arguments: list[str]) -> int:
    # Imports stand in functions here and below, because --help needs no Hydra, and torch is slow.
    args = _parse(arguments)
    if args.help and not args.cfg:
        from elstm.config.help import find_config_dir, find_extra_dir, text

        extra_dir = None if args.config_dir is None else find_extra_dir(args.config_dir)
        topics = [argument for argument in args.overrides if "=" not in argument]
        if topics:
            from elstm.config.describe import describe

            print("\n".join(describe(topic, extra_dir) for topic in topics))
            return 0
        print(text(find_config_dir(), extra_dir))
        return 0
    if args.version:
        print(f"elstm {elstm.__version__}")
        return 0
    if any(each.startswith(RESUME) for each in args.overrides) and not args.shell_completion:
        return resume(arguments)
    from elstm.config.compose import Composer
    from elstm.config.overrides import with_home, without_no_option

    args.overrides = with_home(without_no_option(args.overrides))
    if args.shell_completion:
        args.config_dir = args.config_dir or _completed_config_dir()
    composer = Composer(args.config_dir)
    if args.shell_completion or args.hydra_help or args.info or args.cfg:
        return _show(args, composer)
    sweep = args.multirun or _mode(args.overrides) == "MULTIRUN"
    _refuse_settings_of_the_other_mode(args.overrides, sweep=sweep)
    if sweep:
        from elstm.sweeps.sweep import run_sweep

        return run_sweep(composer, args.overrides)
    return train(composer, args.overrides)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parses Hydra's flags, except those that load other configs or a pickle."""
    from elstm.config.hints import flag_as_argument

    parser = Parser(prog=PROG, add_help=False)
    parser.add_argument("overrides", nargs="*")
    for names in (
        ("--help", "-h"), ("--version",), ("--hydra-help",), ("--multirun", "-m"), ("--run", "-r"),
        ("--resolve",), ("--shell-completion", "-sc"),
    ):  # fmt: skip
        parser.add_argument(*names, action="store_true")
    for names in (("--package", "-p"), ("--config-dir", "-cd")):
        parser.add_argument(*names)
    topics = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=topics)
    refused = ("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun")
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        flag = argument.partition("=")[0]
        if flag in refused:
            parser.error(f"{argument} is refused; --config-dir DIR adds options to the groups")
        if flag.startswith("-") and flag not in ("--", *parser._option_string_actions):
            # argparse would take -hydra for -h
            meant = flag_as_argument(argument, following)
            if meant is None:
                parser.error(f"unrecognized arguments: {argument}")
            parser.error(f"{argument}: settings are written KEY=VALUE, without dashes: {meant}")
    args = parser.parse_intermixed_args(arguments)
    commands = (args.run, args.multirun, args.shell_completion, args.cfg, args.info)
    if sum(map(bool, commands)) > 1:
        parser.error("only one of --run, --multirun, --cfg, --info, --shell-completion is possible")
    if args.resolve and not args.cfg:
        parser.error("--resolve goes with --cfg")
    return args


def _completed_config_dir() -> str | None:
    """Returns --config-dir of the command line that a shell completes, if it is a folder."""
    import shlex

    from elstm.config.help import find_extra_dir

    # ValueError: a quotation mark that is not closed yet. UserError: half a path.
    with suppress(ValueError, UserError):
        words = shlex.split(os.environ.get("COMP_LINE", ""))
        for word, following in pairwise([*words, ""]):
            flag, equals, value = word.partition("=")
            if flag in ("--config-dir", "-cd"):
                return str(find_extra_dir(value if equals else following))
    return None


def _refuse_settings_of_the_other_mode(arguments: Sequence[str], *, sweep: bool) -> None:
    """Raises UserError for settings that only sweeps have, or only single runs."""
    from elstm.errors import show

    of_sweeps = ("hydra.sweep.", "hydra/sweeper=", "hydra.sweeper.", "hydra/launcher=", "sweep.")
    for argument in arguments:
        plain = argument.lstrip("+")
        if sweep and plain.startswith("hydra.run.dir="):
            raise UserError(
                f"{show(argument)} is the folder of a single run: the folder of a sweep, and of "
                "all its runs, is hydra.sweep.dir"
            )
        if not sweep and plain.startswith(of_sweeps):
            raise UserError(f"{show(argument)} is a setting of sweeps: add -m")


def _mode(arguments: Sequence[str]) -> str | None:
    """Returns hydra.mode if it is given, with or without + signs."""
    modes = [
        argument.partition("=")[2]
        for argument in arguments
        if argument.lstrip("+").startswith("hydra.mode=")
    ]
    return modes[-1].strip("'\"").upper() if modes else None


def train(composer: Composer, arguments: Sequence[str]) -> int:
    """Trains a single run in its run folder and returns the exit code."""
    from elstm.config.compose import CONFIG_NAME, name_override, typed
    from elstm.config.data_options import UserDataConfig
    from elstm.sweeps.job import Outcome, execute, folder_made
    from elstm.training.ranks import read_ranks

    cfg, config = composer.compose([*arguments, "hydra.mode=RUN"])
    if not read_ranks().main:
        return execute(config, Path()).code  # in the folder that rank 0 makes
    run_dir = _check_run_dir(cfg)
    missing = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    if any(argument.lstrip("+").startswith("hydra.run.dir=") for argument in arguments):
        _claim(run_dir)
    outcomes: list[Outcome] = []

    def task(cfg: DictConfig) -> None:
        outcomes.append(execute(typed(cfg), folder_made()))

    try:
        named = [name_override(config.data)] if isinstance(config.data, UserDataConfig) else []
        composer.hydra().run(CONFIG_NAME, task, [*arguments, *named, "hydra.mode=RUN"])
    except OSError as error:
        raise UserError(f"cannot create the run folder: {error}") from error
    finally:
        for folder in (run_dir / ".hydra", *missing):  # if the run left nothing in it
            with suppress(OSError):  # not empty
                folder.rmdir()
        if not missing:
            run_dir.mkdir(exist_ok=True)  # it existed, and was empty
    return outcomes[0].code


def _check_run_dir(cfg: DictConfig) -> Path:
    """Returns hydra.run.dir, and raises UserError unless the folder is new or empty."""
    from elstm.config.messages import explain
    from elstm.errors import show

    try:
        given = str(cfg.hydra.run.dir)
    except Exception as error:  # an interpolation that names no key
        raise explain(error) from error
    try:
        run_dir = Path(given)
        foreign = run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir()))
    except (OSError, ValueError) as error:
        raise UserError(f"hydra.run.dir={show(given)}: {error}") from error
    if given.startswith("~"):
        raise UserError(f"hydra.run.dir={show(given)}: write the folder without ~")
    if foreign:
        raise _taken(run_dir)
    return run_dir


def _claim(run_dir: Path) -> None:
    """Makes .hydra, so that only one of two commands that start with one folder uses it."""
    try:
        (run_dir / ".hydra").mkdir(parents=True)
    except FileExistsError as error:
        raise _taken(run_dir) from error
    except OSError as error:
        raise UserError(f"cannot create the run folder: {error}") from error


def _taken(run_dir: Path) -> UserError:
    from elstm.errors import show

    return UserError(
        f"hydra.run.dir={show(run_dir)} exists and is not empty: a new run needs a new folder; to "
        "resume a run, give trainer.resume=RUN_DIR"
    )


def resume(arguments: Sequence[str]) -> int:
    """Resumes the run in trainer.resume=RUN_DIR with its config, and returns the exit code."""
    from elstm.config.run_config import load_run_config
    from elstm.errors import show

    given = [each for each in arguments if each.startswith(RESUME)]
    value = given[0].partition("=")[2].strip("'\"")
    changed, extend = _resume_settings([each for each in arguments if each not in given], given[1:])
    if value in ("", "null"):
        raise UserError(
            "trainer.resume has to be a run's folder: outputs/DATA/MODEL/CHANGES/TIME-ID"
        )
    try:
        run_dir = Path(value).expanduser()
    except RuntimeError as error:  # ~somebody without a home
        raise UserError(f"trainer.resume={show(value)}: {error}") from error
    try:
        config = load_run_config(run_dir, changed)
    except UserError as error:
        raise UserError(f"trainer.resume: {error}") from error
    from elstm.config.changes import with_settings
    from elstm.config.extras import require_extras
    from elstm.sweeps.job import execute
    from elstm.training.ranks import read_ranks

    read_ranks()  # a wrong environment is an error before anything is changed
    with_settings(config, extend)  # and so are a wrong value and a missing package
    require_extras(config.tracking)
    return execute(config, run_dir, resume=True, extend=extend).code


def _resume_settings(
    arguments: Sequence[str], repeated: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings that a resume changes in two mappings by key.

    Settings of the first do not affect what is trained. Settings of the second extend the run.

    Raises:
        UserError: naming the argument that sets another key.
    """
    from elstm.config.changes import EXTENDING, may_extend
    from elstm.config.help import GROUPS
    from elstm.config.hints import all_keys, unknown_key
    from elstm.config.schema import settings_without_effect
    from elstm.errors import show

    known = [*all_keys(), *GROUPS]
    may = {*settings_without_effect(), "trainer.device"} - {"sweep", "trainer.resume"}
    for argument in [*repeated, *arguments]:
        if argument.startswith("-"):
            raise UserError(
                f"{show(argument)}: trainer.resume=RUN_DIR takes no flags; it resumes one run with "
                "the config in its folder, RUN_DIR/.hydra/config.yaml"
            )
        key = argument.partition("=")[0].lstrip("+")
        if key not in may and not may_extend(key):
            is_key = key.replace(".", "_").isidentifier() and not key.startswith("hydra")
            if is_key and key not in known:
                raise unknown_key(key, known)
            raise UserError(
                f"{show(argument)}: trainer.resume=RUN_DIR can only be combined with "
                f"{', '.join(sorted(may))}, or, to extend the run, with "
                f"{', '.join(EXTENDING)}, scheduler; anything else "
                "would change what has been trained already: start a new run for it"
            )
    if not arguments:
        return {}, {}
    from elstm.config.compose import Composer, flatten
    from elstm.config.overrides import with_home

    composer = Composer()
    changed: dict[str, Any] = {}
    option: dict[str, Any] = {}
    extend: dict[str, Any] = {}
    for override in composer.parse(with_home(arguments)):
        key, value = override.key_or_group, override.value()
        if not may_extend(key):
            changed[key] = value
        elif key != "scheduler":
            extend[key] = value
        elif isinstance(value, str):  # the last option of a group counts, and its settings with it
            composed = flatten(composer.compose([f"scheduler={value}"])[0])
            option = {k: v for k, v in composed.items() if k.startswith("scheduler.")}
        else:
            raise UserError(
                f"{show(override.input_line)}: write scheduler=NAME scheduler.KEY=VALUE"
            )
    return changed, {**option, **extend}


def _show(args: argparse.Namespace, composer: Composer) -> int:
    """Prints what Hydra shows of the config, its flags and completions."""
    from elstm.config.compose import CONFIG_NAME
    from elstm.config.hydra_private import get_args_parser
    from elstm.config.messages import explain

    hydra, arguments = composer.hydra(), args.overrides
    try:
        if args.shell_completion:
            hydra.shell_completion(CONFIG_NAME, arguments)
        elif args.hydra_help:
            composer.parse(arguments)
            hydra.hydra_help(None, get_args_parser(), args)
        else:
            _, config = composer.compose(arguments)
            if args.info:
                with _own_logging():
                    hydra.show_info(args.info, CONFIG_NAME, arguments)
            elif args.help:
                from elstm.config.describe import commented

                with redirect_stdout(io.StringIO()) as shown:
                    hydra.show_cfg(CONFIG_NAME, arguments, args.cfg, args.package, args.resolve)
                print(commented(shown.getvalue(), config, args.package))
            else:
                hydra.show_cfg(CONFIG_NAME, arguments, args.cfg, args.package, args.resolve)
    except UserError:
        raise
    except Exception as error:
        raise explain(error) from error
    return 0


@contextmanager
def _own_logging() -> Iterator[None]:
    """Undoes what Hydra's --info does to the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


if __name__ == "__main__":
    from elstm.train import main as imported  # workers cannot import __main__

    sys.exit(imported())
