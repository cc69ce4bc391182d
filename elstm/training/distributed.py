"""Connects the processes of one run, and reports a failure of one to all.

    torchrun --nproc_per_node 2 -m elstm.train data=fashion_mnist trainer.sync_batch_stats=true

All processes that torchrun or `accelerate launch` starts train in rank 0's run folder.
`data.batch_size` is the number of sequences of each process, so P processes train on the batches
that one process has with P times that size. With `trainer.sync_batch_stats=true` the
statistics of a step are those of the full batch, and weights and metrics equal those of one process
up to rounding. Without it, each process normalises its part of the batch. elstm/nn/README.md has
the cost. A resume may have another number of processes if it divides the full batch, which stays
as it was. If one process fails, all end, and its error is in train.log.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import traceback
from datetime import timedelta

import torch
from torch import distributed

from elstm.cli import summary
from elstm.errors import OtherProcessError, UserError
from elstm.training.ranks import Ranks
from elstm.training.torch_private import default_store

SILENT_SECONDS = 10.0  # before a log message that the process waits for the others
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}

log = logging.getLogger(__name__)


def join_processes(ranks: Ranks, device: str) -> None:
    """Connects this process with the others of its run; does nothing for a single process.

    torch waits half an hour for a missing rank, in C++, where no signal is handled. So another
    thread waits, and Ctrl-C and SIGTERM end this one.

    Raises:
        UserError: they cannot be reached, or cannot train on `device` together.
    """
    if ranks.world_size == 1 or distributed.is_initialized():
        return
    if device not in BACKENDS:
        raise UserError(
            f"{ranks.world_size} processes cannot train together on {device}: set "
            "trainer.device=cpu, or start a single process"
        )
    if device == "cuda":
        there = torch.cuda.device_count()
        if ranks.local_rank >= there:
            raise UserError(
                f"LOCAL_RANK={ranks.local_rank}, but this machine has {there} GPU(s): start at "
                "most one process for each"
            )
    failure: list[Exception] = []

    def join() -> None:
        try:
            distributed.init_process_group(
                BACKENDS[device],
                init_method="env://",
                rank=ranks.rank,
                world_size=ranks.world_size,
            )
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=join, daemon=True, name="elstm-join")
    thread.start()
    start, silent = time.monotonic(), True
    while thread.is_alive():
        thread.join(0.1)
        if silent and time.monotonic() - start > SILENT_SECONDS:
            silent = False
            log.warning(
                "process %d of %d waits for the others at %s:%d; Ctrl-C stops it",
                ranks.rank, ranks.world_size, ranks.address, ranks.port,
            )  # fmt: skip
    if failure:
        raise UserError(
            f"process {ranks.rank} of {ranks.world_size} cannot reach the others at "
            f"{ranks.address}:{ranks.port}: {summary(failure[0])}"
        ) from failure[0]
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def shared_text(text: str, ranks: Ranks) -> str:
    """Returns rank 0's text in all processes, which have joined before."""
    if ranks.main:
        default_store().set("elstm/text", text)
        return text
    return str(default_store().get("elstm/text").decode())


def first_failure(error: Exception) -> Exception:
    """Returns the error of the first process that failed; the others fail because it is missing.

    They exchange it through the store of the job's process group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return error
    try:
        store = default_store()
        if store.add("elstm/failed", 1) == 1:
            if "by peer" in str(error):  # gloo's message; no other process knows the reason
                error = UserError(
                    "the connection to another process was lost: it was killed, or its machine "
                    "failed; resume with trainer.resume=RUN_DIR"
                )
            text = f"process {distributed.get_rank()}: {summary(error)}"
            store.set("elstm/error", f"{text}\n{''.join(traceback.format_exception(error))}")
            return error
        store.wait(["elstm/error"], timedelta(seconds=5))
        first, _, details = store.get("elstm/error").decode().partition("\n")
    except Exception:  # the store may be gone with its process
        return error
    return OtherProcessError(first, details)
