"""Runs `elstm-report`: makes a report, or with --pack an archive, from the runs in folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from elstm.cli import Parser, command, home_path
from elstm.errors import UserError, did_you_mean
from elstm.training.ranks import require_one_process

PROG = "elstm-report"
FIGURES = (
    "validation-accuracy", "training-loss", "test-accuracy", "time-to-baseline", "normalisation",
    "time-steps",
)  # fmt: skip
DESCRIPTION = """\
Compares runs. It reads run folders (or folders that hold them, at any depth),
groups the runs by all that differs besides the seed, and writes report.md,
report.html, results.csv (a row per run), summary.csv (a row per group and
baseline) and figures as PNG and SVG.

With --pack it instead writes an archive of the runs in each folder to that
folder or to -o. The archive holds the config in archive.yaml, one row per run
in runs.csv, and tables of the curves. A report reads archives like run folders,
and a path below an archive selects the runs that were there.
"""

EXAMPLES = """\
examples:
  elstm-report outputs/fashion_mnist
  elstm-report outputs --baseline lstm --baseline bn_lstm --thresholds 85,88,90
  elstm-report outputs/digits --baseline lr=0.003 -o comparison
  elstm-report --pack outputs/study
  elstm-report outputs/study/digits/lstm outputs/other
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    return command(PROG, lambda: _main(_parser().parse_args(argv)))


def _main(arguments: argparse.Namespace) -> int:
    # Imported late: --help and wrong options answer at once.
    from elstm.reporting.pack import pack_study
    from elstm.reporting.write import write_report

    require_one_process(PROG)
    output = arguments.output
    if arguments.pack:
        given = {
            "--baseline": arguments.baseline,
            "--thresholds": arguments.thresholds is not None,
            "--ignore": arguments.ignore,
            "--figures": arguments.figures is not None,
            "--no-times": arguments.no_times,
            "--title": arguments.title is not None,
        }
        unused = [option for option, is_given in given.items() if is_given]
        if unused:
            raise UserError(
                f"--pack packs all runs and makes no report, so {', '.join(unused)} would not be "
                "used: give it when you make a report of the archive"
            )
        if output is not None and len(arguments.folders) > 1:
            raise UserError("--pack writes one archive to -o: give one folder")
        for folder in arguments.folders:
            print(pack_study(folder, output))
        return 0
    page = write_report(
        arguments.folders,
        Path("outputs/report") if output is None else output,
        figures=arguments.figures,
        times=not arguments.no_times,
        title="Comparison of runs" if arguments.title is None else arguments.title,
        baselines=arguments.baseline,
        thresholds=arguments.thresholds,
        ignored=arguments.ignore,
    )
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=home_path,
        metavar="RUN_OR_SWEEP_DIR",
        help="folders to search for runs and archives",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=home_path,
        metavar="DIR",
        help="folder for the output; an earlier report there is replaced, and figures that only it "
        "had are removed (default: outputs/report; with --pack, the folder itself)",
    )
    parser.add_argument(
        "--pack",
        action="store_true",
        help="write an archive of the runs in the folder; the run folders stay",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="LABEL|KEY=VALUE",
        help="the group to compare with (default: lstm, else the first); repeat it for more tests",
    )
    parser.add_argument(
        "--thresholds",
        type=_percentages,
        metavar="P,P,...",
        help="validation accuracies in percent; the report shows when they are reached (default: "
        "chosen from the runs)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting that does not divide groups, such as trainer.device",
    )
    parser.add_argument(
        "--figures",
        type=_figures,
        metavar="NAME,NAME,...",
        help=f"the figures to draw: {', '.join(FIGURES)}, all (the default) or none",
    )
    parser.add_argument(
        "--no-times",
        action="store_true",
        help="draw no wall-clock times, for example because the machine did other work",
    )
    parser.add_argument("--title", help="the report's title (default: Comparison of runs)")
    return parser


def _figures(text: str) -> list[str]:
    names = {"all": list(FIGURES), "none": []}.get(text, text.split(","))
    for name in names:
        if name not in FIGURES:
            known = [*FIGURES, "all", "none"]
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {', '.join(known)}{did_you_mean(name, known)}"
            )
    return names


def _percentages(text: str) -> list[float]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: 85,88,90") from None
    if not all(1 < value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: percent, above 1 and up to 100: 85,88,90")
    return [value / 100 for value in values]


if __name__ == "__main__":
    sys.exit(main())
