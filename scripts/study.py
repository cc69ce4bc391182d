"""Runs a study from its file: the sweeps, the choice by validation, the report.

    python scripts/study.py conf/study/rows.yaml --jobs 2    # trains what is not done, and reports
    python scripts/study.py conf/study/*.yaml --report       # the reports alone
    python scripts/study.py conf/study/rows.yaml --check     # trains two runs again and compares
    python scripts/study.py mine.yaml --quick                # all of it with few and small runs

elstm/config/study.py describes such files. A study's runs lie in OUT/NAME, where NAME is the
file's: run folders, or the archive that `elstm-report --pack` makes of them. Runs that are finished
are skipped and others resumed, so start the same command again whenever it was stopped. OUT is
outputs/paper for the files in conf/study and outputs for others; --quick adds -quick to it.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from elstm import train
from elstm.commands import report
from elstm.config.study import Part, Study, in_order, read_study, source_of
from elstm.errors import UserError
from elstm.files.atomic import write_together
from elstm.files.bounded import Damaged, Value, one_line
from elstm.records.find import find_runs
from elstm.records.stored import StoredRun
from elstm.reporting.choose import best_overrides, read_settings, settings_table
from elstm.reporting.repeat import differences, overrides_of, quoted

STUDIES = Path(__file__).resolve().parents[1] / "conf" / "study"


class Runner:
    """Trains and reports studies in one folder.

    Args:
        out: the folder that holds a folder for each study.
        quick: take the few and small runs of --quick.
        jobs: how many runs at once.
        models: the only models to train; all where it is empty.
    """

    def __init__(self, out: Path, *, quick: bool, jobs: int, models: Sequence[str] = ()) -> None:
        self.out, self.quick, self.jobs, self.models = out, quick, jobs, models
        self.failed = False

    def run(self, study: Study) -> None:
        """Trains what is not finished yet.

        Raises:
            SystemExit: a sweep was interrupted or refused.
            UserError: a study whose settings it takes has no finished runs.
        """
        if study.gpu and not _has_gpu():
            print(f"{study.name}: there is no GPU here, so nothing is trained")
            return
        for overrides in self.sweeps(study):
            print("+ elstm-train -m", shlex.join(overrides), flush=True)
            code = train.main(["-m", *overrides])
            if code > 1:  # a signal, or an argument that is wrong
                sys.exit(code)
            self.failed |= code == 1

    def sweeps(self, study: Study) -> Iterator[list[str]]:
        """Yields the arguments of each `elstm-train -m`, which may need the sweeps before it."""
        folder = self.out / study.name
        start = [f"hydra.sweep.dir={quoted(str(folder))}"]
        if self.jobs > 1 and not study.alone:
            start += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={self.jobs}"]
        for part in study.parts:
            if self.quick and not part.quick:
                continue
            wanted = [model for model in part.models if not self.models or model in self.models]
            # Each model has a choice of its own.
            together = [[model] for model in wanted] if part.choose else [wanted]
            for models in filter(None, together):
                yield start + self._overrides(study, part, models)

    def _overrides(self, study: Study, part: Part, models: Sequence[str]) -> list[str]:
        overrides: dict[str, str] = {"model": ",".join(models)}
        seeds = part.seeds[: study.quick.get("seeds")] if self.quick else part.seeds
        overrides["seed"] = ",".join(map(str, seeds))
        overrides |= {key: quoted(value) for key, value in study.settings.items()}
        for each in part.choose:
            places, model = source_of(each)
            folders = [self.out / place for place in places]
            for override in best_overrides(folders, model or models[0]):
                key, _, value = override.partition("=")
                overrides[key.removesuffix(".name")] = value
        overrides |= {key: quoted(value) for key, value in part.settings.items()}
        overrides |= {key: ",".join(map(quoted, values)) for key, values in part.grid.items()}
        if self.quick:
            quick = study.quick.get("settings", {})
            overrides |= {key: quoted(value) for key, value in quick.items()}
        return [f"{key}={value}" for key, value in overrides.items()]

    def report(self, study: Study) -> None:
        """Writes the tables of settings and the report, for what there is."""
        folder = self.out / study.name
        if not folder.is_dir():
            print(f"{study.name}: no runs in {folder}")
            return
        tables = {
            name: f"{settings_table(read_settings([folder / path]))}\n".encode()
            for name, path in study.tables.items()
        }
        write_together(folder, tables)
        for name in tables:
            print(f"{folder / name}")
        if not study.report:
            return
        arguments = [str(folder), *map(str, self._others(study.report.get("with", [])))]
        for baseline in study.report.get("baselines", []):
            arguments += ["--baseline", str(baseline)]
        if "figures" in study.report:
            arguments += ["--figures", ",".join(study.report["figures"]) or "none"]
        if not study.report.get("times", True):
            arguments += ["--no-times"]
        arguments += ["--title", study.report.get("title", study.name), "-o", str(folder)]
        print("+ elstm-report", shlex.join(arguments), flush=True)
        code = report.main(arguments)
        if code > 1:
            sys.exit(code)
        self.failed |= code == 1

    def _others(self, patterns: Sequence[str]) -> list[Path]:
        """Returns the folders of other studies' runs that the patterns name, in order."""
        found: list[Path] = []
        for pattern in patterns:
            parts = pattern.split("/")
            study = self.out / parts[0]
            runs = find_runs([study])[0] if study.is_dir() else []
            places = {
                run.folder.relative_to(study.resolve()).parts[: len(parts) - 1] for run in runs
            }
            found += [
                study.joinpath(*place)
                for place in sorted(places)
                if all(map(fnmatch.fnmatchcase, place, parts[1:]))
            ]
        return found

    def check(self, study: Study) -> None:
        """Trains two of the finished runs again and prints where they differ from the kept ones."""
        found, _ = find_runs([self.out / study.name])
        done = [run for run in found if run.status().get("state") == "done"]
        done.sort(key=lambda run: float(run.status().get("train_seconds") or 0))
        if not done:
            raise UserError(f"{study.name} has no finished runs in {self.out / study.name}")
        # The shortest, and the shortest of another model if there is one.
        others = [run for run in done[1:] if _model(run) != _model(done[0])] or done[1:]
        for run in [done[0], *others[:1]]:
            parts = self._again(run)
            for difference in parts[:10]:
                print(f"{run.name}: {difference}")
            print(f"{run.name}: {'DIFFERENT' if parts else 'identical'}", flush=True)
            self.failed |= bool(parts)

    def _again(self, run: StoredRun) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*overrides_of(run), f"hydra.run.dir={quoted(folder)}/run"]
            print("+ elstm-train", shlex.join(overrides), flush=True)
            code = train.main(overrides)
            if code:
                sys.exit(code)
            again = find_runs([Path(folder)])[0][0]
            return differences(run, again)


def _model(run: StoredRun) -> Value:
    return run.config().get("model.name")


def _has_gpu() -> bool:
    import torch  # late: reports need none

    return torch.cuda.is_available()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--out", type=Path, help="holds a folder for each study")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=[], metavar="MODEL,MODEL",
        help="trains these models of the studies alone",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="trains few and small runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="trains nothing and makes the reports")
    what.add_argument("--check", action="store_true", help="trains two runs again and compares")
    args = parser.parse_args(argv)
    if args.jobs > 1 and find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        parser.error("--jobs needs joblib: pip install 'elstm[joblib]'")
    try:
        studies = in_order([read_study(path) for path in args.files])
        own = all(path.resolve().parent == STUDIES for path in args.files)
        out = args.out or Path("outputs/paper" if own else "outputs")
        if args.quick:
            out = out.with_name(f"{out.name}-quick")
        for model in args.models:
            if not any(model in part.models for study in studies for part in study.parts):
                raise UserError(f"--models: no study here has a model {one_line(model, 40)}")
        jobs = max(args.jobs, 1)
        runner = Runner(out, quick=args.quick, jobs=jobs, models=args.models)
        for study in studies:
            if args.check:
                runner.check(study)
                continue
            if not args.report:
                runner.run(study)
            runner.report(study)
    except (UserError, Damaged) as error:
        print(f"study.py: error: {one_line(error, 400)}", file=sys.stderr)
        return 1
    if runner.failed:
        print("some runs have failed or differ: see above", file=sys.stderr)
    return int(runner.failed)


if __name__ == "__main__":
    sys.exit(main())
