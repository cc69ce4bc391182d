"""Measures the speed of layers and runs, as ratios to torch.nn.LSTM in the same process.

    python scripts/benchmark.py                              # the table: minutes on a CPU
    python scripts/benchmark.py --scaling                    # cost against T, B and H
    python scripts/benchmark.py --shapes rows --compile      # with torch.compile of the reference
    python scripts/benchmark.py --end-to-end                 # epochs of elstm-train
    python scripts/benchmark.py --packed --rounds 40         # steps of packed batches
    python scripts/benchmark.py --startup                    # of the commands
    python scripts/benchmark.py --json speed.json --chart speed.png
    python scripts/benchmark.py --device cuda                # see also scripts/gpu_check.sh
    python scripts/benchmark.py --device cuda --profile      # kernels of a training step of ELSTMBN

A training step is a forward and a backward pass to all parameters and the input; an eval pass is a
forward in eval mode without gradients. A layer and torch.nn.LSTM take turns, round by round. The
table has medians over the rounds, and of the ratios also the lowest and the highest. Memory is the
amount that a training step adds to the peak of a separate process. A layer is named with the
backend that ran it; "reference" is the usual public way of writing a BN-LSTM, a loop over time in
Python. With --json, a part that is measured again replaces its rows in the file, and the chart
shows all rows of the file. So the parts may be measured one by one.

End to end runs the real loop of elstm-train on Fashion-MNIST, row by row, for one epoch, with the
models in turns. Hooks time the layer inside it: its forward call, and its backward pass from the
moment that the gradient of its h_n is computed. The remaining parts of a step are data, head, loss,
clipping, optimizer and records. It needs the data set, in ELSTM_DATA or data/.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from speed import layers
from speed.layers import SHAPES, SIZES, scaling, table


def main() -> None:
    args = parser().parse_args()
    if args.cpu_time:
        args.threads, layers.clock = 1, time.thread_time
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device or platform.machine(),
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()) + ", float32, no TF32\n")
    part = next(
        (p for p in ("scaling", "end_to_end", "packed", "startup", "profile") if getattr(args, p)),
        "rows",
    )
    rows = measure(part, args)
    content = merged(args.json, machine, part, rows)
    if args.json:
        Path(args.json).write_text(json.dumps(content, indent=1) + "\n")
    if args.chart and part == "rows":
        from speed.chart import chart

        chart(content["rows"], args.chart)


def measure(part: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    if part == "scaling":
        return scaling(args)
    if part == "end_to_end":
        from speed.training import end_to_end

        return end_to_end(args.device, args.rounds)
    if part == "packed":
        from speed.packed import packed_steps

        return packed_steps(args.device, args.rounds)
    if part == "profile":
        from speed.kernels import profiles

        return profiles((args.layers or ["ELSTMBN auto"])[0])
    if part == "startup":
        from speed.startup import startup

        return startup(args.rounds)
    return table(args)


KEYS = {
    "rows": ("shape", "layer"),
    "profile": ("shape", "layer"),
    "scaling": ("size", "value"),
    "end_to_end": ("model",),
    "packed": ("model", "size"),
}


def merged(
    path: str | None, machine: dict[str, Any], part: str, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the content of the file with `rows` in place of rows of the same name and machine."""
    content: dict[str, Any] = {}
    if path and Path(path).exists():
        content = json.loads(Path(path).read_text())
    if content.get("machine") != machine:
        content = {"machine": machine}
    keys = KEYS.get(part, ("what",))

    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys)

    new = {name(row) for row in rows}
    content[part] = [row for row in content.get(part, []) if name(row) not in new] + rows
    return content


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Times the layers against torch.nn.LSTM.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--layers", nargs="+", help='such as "ELSTMBN reference"; default: all')
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for each figure")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of one thread, for busy machines"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also measure the compiled reference"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--scaling", action="store_true", help="measure the cost against T, B and H instead"
    )
    instead.add_argument(
        "--end-to-end", action="store_true", help="measure epochs of elstm-train instead"
    )
    instead.add_argument("--packed", action="store_true", help="measure packed batches instead")
    instead.add_argument(
        "--startup", action="store_true", help="measure the start-up of commands instead"
    )
    instead.add_argument("--profile", action="store_true", help="measure kernels on a GPU instead")
    parser.add_argument(
        "--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="of --scaling"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of full runs and commands")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--chart", metavar="FILE", help="also draw the table as a picture")
    return parser


if __name__ == "__main__":
    main()
