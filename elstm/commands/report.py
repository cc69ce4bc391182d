"""`elstm-report`: run folders in; report.md, report.html, results.csv and figures out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from elstm.cli import command

PROG = "elstm-report"
DESCRIPTION = """\
Compares runs: reads run folders (or folders that hold them, at any depth), groups the runs by
whatever differs besides the seed, and writes report.md, report.html, results.csv (a row per run),
summary.csv (a row per group) and figures as PNG and SVG."""

EXAMPLES = """\
examples:
  elstm-report outputs/fashion_mnist
  elstm-report outputs --baseline lstm --baseline bn_lstm --thresholds 85,88,90
  elstm-report outputs/digits --baseline lr=0.003 -o comparison
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    arguments = _parser().parse_args(argv)
    return command(PROG, lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    # Imported late: --help and wrong options answer at once.
    from elstm.reporting.write import write_report

    page = write_report(
        arguments.folders,
        arguments.output,
        title=arguments.title,
        baselines=arguments.baseline,
        thresholds=arguments.thresholds,
        ignored=arguments.ignore,
    )
    print(page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP_DIR", help="where to look for runs"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("outputs/report"),
        metavar="DIR",
        help="where to write; files of an earlier report there are replaced (outputs/report)",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="LABEL|KEY=VALUE",
        help="the group to compare with (lstm, else the first); again for more tests",
    )
    parser.add_argument(
        "--thresholds",
        type=_percentages,
        metavar="P,P,...",
        help="validation accuracies in percent whose reaching is reported (chosen from the runs)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting that shall not divide groups, such as trainer.device",
    )
    parser.add_argument("--title", default="Comparison of runs", help="the report's title")
    return parser


def _percentages(text: str) -> list[float]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers: 85,88,90") from None
    if not all(1 < value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: percent, above 1 and up to 100: 85,88,90")
    return [value / 100 for value in values]


if __name__ == "__main__":
    main()
