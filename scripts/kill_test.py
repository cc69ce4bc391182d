"""Kills runs at random moments and resumes them, and checks that nothing is lost or changed.

    python scripts/kill_test.py                             # each model, 50 kills each: minutes
    python scripts/kill_test.py --models lstm --kills 10 --seed 1
    python scripts/kill_test.py --command 10 --sweep 10     # elstm-train itself, from its start-up

A run on the digits is killed (SIGKILL, from outside) and resumed until it is done. Then it has to
equal an uninterrupted run, on this CPU bit by bit: weights, optimizer and counters in best.pt and
last.pt, all rows of metrics.csv and norms.csv except the clocks' columns, and every value that
TensorBoard's reader finds in the event file, in order. Further runs follow until there were enough
kills.

A third of the kills come at any moment of the run's time. The others are aimed at a random phase
and come within its mean duration after its start. These runs are forked from a process that has
torch loaded, so that a kill costs half a second; the runner has no hook for this. With --command
and --sweep the commands are started anew each time, as a user would, and the kill may hit their
start-up too. The sweep has two runs at once, and at a third of the kills only its process is
killed, and its workers have to notice.

The exit code is 1 if a resume failed or a run differs. The script needs: pip install -e '.[test]'
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from training_runs import (  # type: ignore[import-not-found]  # noqa: E402
    MODELS,
    assert_same_runs,
    small_config,
)

PHASES = {
    "start": "until training starts",
    "step": "a training step",
    "record": "rows and scalars of a log point",
    "checkpoint": "a checkpoint's write",
    "statistics": "the recomputation of statistics",
    "evaluation": "the evaluation",
    "picture": "|dL/dh_t| and its picture",
    "status": "status.json's write",
    "test": "the test at the end",
    "between": "the rest of the loop",
    "end": "after the test",
}
NAMES = list(PHASES)
AIMED = [name for name in NAMES if name not in ("between", "end")]
LOADED = [
    "elstm.training.run", "elstm.sweeps.job",
    "sklearn.datasets", "torch._dynamo", "matplotlib.figure",
    "matplotlib.font_manager", "matplotlib.backends.backend_agg",
]  # fmt: skip
LONGEST = 120.0  # seconds that a run may take
MAX_KILLS = 12  # of one run; then it may end
OVERRIDES = [
    "trainer.threads=1", "trainer.max_epochs=3", "trainer.log_every=4", "trainer.progress=false",
    "trainer.checkpoint_every=5", "trainer.device=cpu", "model.hidden_size=8", "model.dropout=0.2",
    "model.num_layers=2", "data.batch_size=128", "data.pixels_per_step=8",
]  # fmt: skip


class Watch:
    """Holds a run's phase, and entries and seconds of each, in memory that outlives it."""

    def __init__(self, context: Any) -> None:
        self.phase = context.RawValue("i", 0)
        self.entries = context.RawArray("i", len(NAMES))
        self.seconds = context.RawArray("d", len(NAMES))

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        number, before, start = NAMES.index(name), self.phase.value, time.perf_counter()
        self.entries[number] += 1
        self.phase.value = number
        try:
            yield
        finally:
            self.phase.value = before
            self.seconds[number] += time.perf_counter() - start

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.within(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, watched)

    def clear(self) -> None:
        self.phase.value = 0
        for i in range(len(NAMES)):
            self.entries[i], self.seconds[i] = 0, 0.0


def train(config: Any, folder: Path, watch: Watch) -> None:
    """Does in a separate process what elstm-train trainer.resume=FOLDER does once it is loaded."""
    from elstm.records import pictures as figures
    from elstm.records import tracking
    from elstm.records.status import Status
    from elstm.sweeps.job import execute
    from elstm.training import checkpoint, evaluation
    from elstm.training import run as training
    from elstm.training.step import TrainStep

    sys.stdout = sys.stderr = (folder.parent / f"{folder.name}.out").open("a")
    for owner, attribute, name in (
        (TrainStep, "__call__", "step"),
        (tracking.Tracker, "log", "record"),
        (checkpoint, "save", "checkpoint"),
        (evaluation, "recompute_statistics", "statistics"),
        (evaluation, "measure", "evaluation"),
        (evaluation, "over_time", "picture"),
        (figures, "gradient_figure", "picture"),
        (Status, "update", "status"),
        (training, "test_best", "test"),
    ):
        watch.wrap(owner, attribute, name)
    train_and_test = training.train_and_test

    def watched(*args: Any) -> None:
        watch.phase.value = NAMES.index("between")
        train_and_test(*args)
        watch.phase.value = NAMES.index("end")

    vars(training)["train_and_test"] = watched
    with watch.within("start"):
        code = execute(config, folder, resume=True).code
    sys.exit(code)


class Killer:
    """Starts, kills and resumes the runs of one model, and counts the kills.

    Attributes:
        hits: kills by the phase that they hit.
        problems: messages about errors and differences.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.hits, self.problems = rng, Counter[str](), list[str]()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(LOADED)
        self.watch = Watch(self.context)
        self.kills = self.resumes = self.runs = 0

    def start(self, config: Any, folder: Path) -> Any:
        self.watch.clear()
        process = self.context.Process(target=train, args=(config, folder, self.watch))
        process.start()
        return process

    def uninterrupted(self, config: Any, folder: Path) -> tuple[float, dict[str, float]]:
        """Trains an uninterrupted run; returns its seconds, and the mean seconds of each phase."""
        folder.mkdir()
        process = self.start(config, folder)
        process.join(LONGEST)
        if process.exitcode != 0:
            text = (folder.parent / f"{folder.name}.out").read_text().strip()
            raise SystemExit(f"the uninterrupted run ended with {process.exitcode}: {text}")
        entries, seconds = list(self.watch.entries), list(self.watch.seconds)
        means = {n: s / max(e, 1) for n, e, s in zip(NAMES, entries, seconds, strict=True)}
        return seconds[NAMES.index("start")], means  # which holds all the others

    def attempt(self, config: Any, folder: Path, life: float, means: dict[str, float]) -> bool:
        """Starts or resumes the run and kills it unless it ends; returns whether it ended."""
        rng, start = self.rng, time.perf_counter()
        process = self.start(config, folder)
        if rng.random() < 1 / 3:
            delay = rng.uniform(0, life)
        else:
            aim = rng.choice(AIMED)
            number, entry = NAMES.index(aim), 1 if aim in ("start", "test") else rng.randint(1, 3)
            while self.watch.entries[number] < entry and process.exitcode is None:
                time.sleep(0.0002)
            start = time.perf_counter()
            delay = rng.uniform(0, life / 4 if aim == "start" else means[aim])
        while time.perf_counter() - start < delay and process.exitcode is None:
            time.sleep(min(0.0002, delay))
        process.kill()
        process.join(LONGEST)
        if process.exitcode == -signal.SIGKILL:
            self.kills += 1
            self.hits[NAMES[self.watch.phase.value]] += 1
            return False
        if process.exitcode != 0:
            text = (folder.parent / f"{folder.name}.out").read_text().strip()
            self.problems.append(f"{folder}: ended with {process.exitcode}: {text[-500:]}")
        return True

    def model(self, name: str, kills: int, folder: Path) -> None:
        """Trains runs of one model until there were `kills` kills."""
        config = small_config(
            name,
            max_epochs=3,
            log_every=4,
            checkpoint_every=5,
            model={"dropout": 0.2, "num_layers": 2, "state_noise": 0.1},
            data={"batch_size": 128},
        )
        reference = folder / "reference"
        life, means = self.uninterrupted(config, reference)
        while self.kills < kills and not self.problems:
            run_dir = folder / f"run{self.runs}"
            run_dir.mkdir()
            before, done = self.kills, False
            while not done:
                tired = self.kills - before >= MAX_KILLS
                done = self.attempt(config, run_dir, LONGEST if tired else life, means)
                self.resumes += not done
            self.runs += 1
            compare(reference, run_dir, self.problems)

    def line(self, name: str) -> str:
        hits = ", ".join(f"{phase} {self.hits[phase]}" for phase in NAMES if self.hits[phase])
        return (
            f"| {name} | {self.runs} | {self.kills} | {self.resumes} | "
            f"{'all' if not self.problems else 'NOT ALL'} | {hits} |"
        )


def compare(reference: Path, folder: Path, problems: list[str]) -> None:
    """Adds the differences between two runs to `problems`."""
    try:
        assert_same_runs(reference, folder)
    except Exception as error:  # a file that is missing, or cannot be read
        problems.append(f"{folder} differs from {reference}: {type(error).__name__}: {error}")


# --- the commands themselves


def command(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "elstm.train", *words],
            cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


def killed_command(
    words: Callable[[], list[str]],
    kills: int,
    folder: Path,
    life: float,
    rng: random.Random,
    alone: float = 0.0,
) -> tuple[int, list[str]]:
    """Starts the command and kills its full process group, again and again; then lets it end.

    Args:
        alone: the probability that a kill hits only the command's process. Its workers have to
            notice, and the command is started again when they have ended.

    Returns: the number of kills, and the problems.
    """
    done = 0
    for _ in range(10 * kills + 1):
        process = command(words(), folder)
        if done < kills:
            try:
                process.wait(rng.uniform(0, life))
            except subprocess.TimeoutExpired:
                if rng.random() < alone:
                    process.kill()
                    process.wait()
                    if not ended(process.pid):
                        os.killpg(process.pid, signal.SIGKILL)
                        return done, [f"{folder}: workers still ran {LONGEST:.0f} s after a kill"]
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                done += 1
                continue
        if process.wait(LONGEST):
            text = (folder / "output.txt").read_text().strip()
            return done, [f"{folder}: ended with {process.returncode}: {text[-500:]}"]
        if done >= kills:
            break
    return done, []


def ended(group: int) -> bool:
    """Waits for all processes of a group."""
    start = time.monotonic()
    while time.monotonic() - start < LONGEST:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def seconds_of(words: list[str], folder: Path) -> float:
    folder.mkdir(parents=True)
    start = time.perf_counter()
    if command(words, folder).wait(LONGEST):
        raise SystemExit((folder / "output.txt").read_text())
    return time.perf_counter() - start


def run_dirs(folder: Path, model: str) -> list[Path]:
    """Returns run folders, the furthest run last, without runs that have no config."""
    group = folder / "outputs" / "digits" / model
    return sorted(
        (d for d in group.glob("*/*") if (d / ".hydra" / "overrides.yaml").exists()),
        key=lambda d: ((d / "checkpoints" / "last.pt").exists(), d.name),
    )


def single(kills: int, folder: Path, rng: random.Random) -> tuple[int, int, list[str]]:
    """Kills elstm-train and resumes with trainer.resume; returns runs, kills and problems."""
    model = "elstm_bn"
    words = [f"model={model}", *OVERRIDES]
    life = seconds_of(words, folder / "reference")
    (reference,) = run_dirs(folder / "reference", model)
    runs = total = 0
    problems: list[str] = []
    while total < kills and not problems:
        place = folder / f"single{runs}"
        place.mkdir()

        def again(place: Path = place) -> list[str]:
            found = run_dirs(place, model)
            return [f"trainer.resume={found[-1].relative_to(place)}"] if found else words

        count, problems = killed_command(again, min(5, kills - total), place, life, rng)
        total, runs = total + count, runs + 1
        if not problems:
            compare(reference, run_dirs(place, model)[-1], problems)
    return runs, total, problems


def sweep(kills: int, folder: Path, rng: random.Random) -> tuple[int, int, list[str]]:
    """Repeats the same elstm-train -m with two runs at once."""
    models = ("lstm", "elstm_bn")
    words = ["-m", f"model={','.join(models)}", *OVERRIDES]
    both = [*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    seconds_of(words, folder / "reference_sweep")
    life = seconds_of(both, folder / "reference_sweep2")
    runs = total = 0
    problems: list[str] = []
    while total < kills and not problems:
        place = folder / f"sweep{runs}"
        place.mkdir()
        count, problems = killed_command(
            lambda: both, min(5, kills - total), place, 1.2 * life, rng, alone=1 / 3
        )
        total, runs = total + count, runs + 1
        for model in models if not problems else ():
            (reference,) = run_dirs(folder / "reference_sweep", model)
            compare(reference, run_dirs(place, model)[-1], problems)
    return runs, total, problems


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--kills", type=int, default=50, help="number of kills of the runs of each model"
    )
    parser.add_argument(
        "--command", type=int, default=0, help="number of kills of elstm-train itself"
    )
    parser.add_argument(
        "--sweep", type=int, default=0, help="number of kills of a sweep with two runs at once"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    args = parser.parse_args(argv)
    rng, problems = random.Random(args.seed), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        folder, total = Path(temporary), 0
        if args.kills:
            print(
                "| model | runs | kills | resumes | equal | kills by phase |\n" + 6 * "|---" + "|"
            )
        hits = Counter[str]()
        for name in args.models if args.kills else ():
            killer = Killer(rng)
            (folder / name).mkdir()
            killer.model(name, args.kills, folder / name)
            print(killer.line(name), flush=True)
            problems += killer.problems
            hits += killer.hits
        for phase in NAMES if args.kills else ():
            print(f"{hits[phase]:5d} kills in {phase}: {PHASES[phase]}")
        total = hits.total()
        for kind, kills in (("elstm-train", args.command), ("elstm-train -m", args.sweep)):
            if kills:
                body = single if kind == "elstm-train" else sweep
                runs, count, found = body(kills, folder, rng)
                print(f"{kind}: {count} kills of {runs} runs; {'NOT ' if found else ''}all equal")
                problems += found
                total += count
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{total} kills, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
