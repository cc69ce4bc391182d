"""Measures and models the cost of synchronised batch statistics of each time step.

    python scripts/sync_cost.py              # two gloo processes on this machine, one thread each
    python scripts/sync_cost.py --model      # the model alone

The script measures one all-gather and one all-reduce of the 2 x 4H numbers of a norm of W_h h. It
also measures a training step (forward and backward of ELSTMBN, medians) with the statistics of each
process, and with those of both processes.

The model is for NCCL on nodes of 8 GPUs with NVLink. A training step has (n T + 3) all-gathers
forward and n T + 1 all-reduces backward, where n is the number of norms in the loop: 2, or 3 for
terms and update_output. The added constants are for the norm of W_x x and the exchange of counts.
So it waits

    (n T + 3) (gather(P) + host) + (n T + 1) (reduce(P) + host)

    gather(P) = 3.6 + (P - N) 0.47 s + (N - 1) 2.7 + (P - 1) bytes / 25 GB/s    µs, ring
    reduce(P) = 4.4 + 2 ((8 - 1) 0.52 s + log2(N) 5.0)                          µs, tree

for P GPUs on N = P / 8 nodes; s is 1 on one node and 1.8 on several; bytes = 4 * 2 * 4H. The
constants are those of NCCL's own latency model, protocol LL (baseLat and hwLat in
src/graph/tuning.cc, commit 01afd20). Two values are assumed: 25 GB/s, a quarter of a ring's
100 GB/s as LL has it, and `host`, 15 µs for PyTorch to launch a collective from Python. Nothing of
this was measured on GPUs.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from elstm.nn import ELSTMBN

SHAPES = {"rows": (28, 64, 28, 128), "pixels": (784, 50, 1, 100)}  # T, B of a process, I, H
GPUS = (8, 16, 32, 64, 128, 256)
NODE, HOST = 8, 15.0  # GPUs of a node; µs


def gather_us(gpus: int, hidden: int) -> float:
    nodes = gpus // NODE
    slower = 1.8 if nodes > 1 else 1.0
    data = (gpus - 1) * 4 * 2 * 4 * hidden / 25e3
    return 3.6 + (gpus - nodes) * 0.47 * slower + (nodes - 1) * 2.7 + data


def reduce_us(gpus: int) -> float:
    nodes = gpus // NODE
    slower = 1.8 if nodes > 1 else 1.0
    return 4.4 + 2 * ((NODE - 1) * 0.52 * slower + math.log2(nodes) * 5.0)


def modelled() -> None:
    print("modelled, NCCL: µs of a collective, ms that a training step waits for them, update")
    print(f"| GPUs | all-gather | all-reduce | {' | '.join(SHAPES)} |\n|---|---|---|---|---|")
    for gpus in GPUS:
        cells = []
        for steps, _, _, hidden in SHAPES.values():
            forward = (2 * steps + 3) * (gather_us(gpus, hidden) + HOST)
            cells.append(f"{(forward + (2 * steps + 1) * (reduce_us(gpus) + HOST)) / 1e3:.1f}")
        gather = gather_us(gpus, SHAPES["rows"][3])
        print(f"| {gpus} | {gather:.0f} | {reduce_us(gpus):.0f} | {' | '.join(cells)} |")


def median_ms(function: Callable[[], object], seconds: float) -> float:
    """Returns the median time of as many calls as rank 0 has time for."""
    function()
    begin = time.perf_counter()
    function()
    count = torch.tensor(max(3, int(seconds / (time.perf_counter() - begin))))
    dist.broadcast(count, 0)
    times = []
    for _ in range(int(count)):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times)


def measured(seconds: float) -> None:
    """Measures in each of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    norm = torch.zeros(2, 4 * 128)
    parts = [torch.zeros_like(norm) for _ in range(dist.get_world_size())]
    gather = median_ms(lambda: dist.all_gather(parts, norm), seconds / 4)
    reduce = median_ms(lambda: dist.all_reduce(norm), seconds / 4)
    if first:
        print(f"measured, {dist.get_world_size()} gloo processes: all-gather {1e3 * gather:.0f} µs,"
              f" all-reduce {1e3 * reduce:.0f} µs")  # fmt: skip
        print("| shape | statistics | backend | step, ms | to local |\n|---|---|---|---|---|")
    for shape, (steps, batch, inputs, hidden) in SHAPES.items():
        local = math.nan
        kinds: dict[str, dict[str, Any]] = {
            "local": {},
            "local, reference": {"backend": "reference"},
            "synchronised": {"sync_batch_stats": True},
        }
        for name, options in kinds.items():
            layer = ELSTMBN(inputs, hidden, max_steps=steps, **options)
            x, gradient = torch.randn(steps, batch, inputs), torch.randn(steps, batch, hidden)

            def step(
                layer: ELSTMBN = layer, x: torch.Tensor = x, g: torch.Tensor = gradient
            ) -> None:
                layer.zero_grad()
                layer(x)[0].backward(g)

            dist.barrier()
            took = median_ms(step, seconds)
            local = took if name == "local" else local
            if first:
                row = (shape, name, layer.last_backend, f"{took:.1f}", f"{took / local:.2f}")
                print(f"| {' | '.join(map(str, row))} |", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="store_true", help="without measuring")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    args = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        measured(args.seconds)
        sys.exit()
    if not args.model:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*launch, __file__, "--seconds", str(args.seconds)], env=environment, check=True
        )
        print()
    modelled()
