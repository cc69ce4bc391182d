"""Reads rank and world size of this process from the environment; no other module does.

torchrun and `accelerate launch` set RANK, WORLD_SIZE and LOCAL_RANK; Open MPI, MVAPICH and MPICH
have other names. torch and Accelerate each read some of them, and not the same ones, so
`elstm.training.environment` sets the values that are read here for both. This module imports no
torch, because its check runs before anything else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from elstm.errors import UserError

# Rank, world size, local rank, local world size. The first that is complete counts.
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
     "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)  # fmt: skip
VARIABLES = (*_TORCH, *(name for names in _MPI for name in names), "MASTER_ADDR", "MASTER_PORT")
_MAX = 1_000_000
_ADVICE = "start the processes with torchrun or `accelerate launch`, or unset these variables"


@dataclass(frozen=True)
class Ranks:
    """Describes one of `world_size` processes of a run; `rank` 0 alone writes."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int | None = None  # processes on this machine; None: unknown
    address: str = ""  # of rank 0, host:port, where there are several
    port: int = 0

    @property
    def main(self) -> bool:
        return self.rank == 0

    def variables(self) -> dict[str, str]:
        """Returns the variables for torch and Accelerate; none for a single process."""
        if self.world_size == 1:
            return {}
        found = {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }
        if self.local_world_size is not None:
            found["LOCAL_WORLD_SIZE"] = str(self.local_world_size)
        return found


def read_ranks(environ: Mapping[str, str] | None = None) -> Ranks:
    """Reads the environment.

    Raises:
        UserError: the variables are no numbers, or do not fit together.
    """
    environ = os.environ if environ is None else environ
    torch = _numbers(_TORCH, environ)
    mpi = next((n for names in _MPI if (n := _numbers(names, environ)).get(names[1], 1) > 1), {})
    complete = all(name in torch for name in _TORCH[:3])
    if mpi and not complete:
        if torch:
            raise UserError(f"{_shown(torch)} do not fit {_shown(mpi)}: {_ADVICE}")
        names, found = next(names for names in _MPI if names[1] in mpi), mpi
    else:
        names, found = _TORCH, torch
    rank, size, local, local_size = (found.get(name) for name in names)
    if size in (None, 1) and not rank and not local and local_size in (None, 1):
        return Ranks()
    if rank is None or size is None or local is None:
        missing = [name for name in names[:3] if name not in found]
        lacks = " and ".join(missing)
        raise UserError(f"the environment has {_shown(found)} but not {lacks}: {_ADVICE}")
    problem = ""
    if rank >= size:
        problem = f"{names[0]} has to be below {names[1]}"
    elif local > rank:
        problem = f"{names[2]} cannot be above {names[0]}"
    elif local_size is not None and not local < local_size <= size:
        problem = f"{names[2]} has to be below {names[3]}, which is at most {names[1]}"
    elif local_size == size and local != rank:
        problem = f"on a single machine {names[2]} equals {names[0]}"
    if problem:
        raise UserError(f"the environment has {_shown(found)}: {problem}; {_ADVICE}")
    address, port = _rendezvous(environ, single_machine=local_size == size)
    return Ranks(rank, size, local, local_size, address, port)


def require_one_process(prog: str) -> None:
    """Raises UserError if several processes run the command, as each would write the same files."""
    ranks = read_ranks()
    if ranks.world_size > 1:
        raise UserError(f"{prog} needs one process and has {ranks.world_size}: start it alone")


def _rendezvous(environ: Mapping[str, str], *, single_machine: bool) -> tuple[str, int]:
    """Returns the address at which rank 0 waits for the other ranks."""
    address = environ.get("MASTER_ADDR") or ("127.0.0.1" if single_machine else "")
    if not address:
        raise UserError(f"MASTER_ADDR is not set: it names the machine of rank 0; {_ADVICE}")
    text = environ.get("MASTER_PORT") or "29500"
    port = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= port <= 65_535:
        raise UserError(f"MASTER_PORT={text} has to be a port, 1 to 65535: {_ADVICE}")
    return address, port


def _numbers(names: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, int]:
    """Returns the variables that are set and not empty."""
    found = {}
    for i, name in enumerate(names):
        text = environ.get(name)
        if not text:
            continue
        least = i % 2  # of the sizes
        good = text.isascii() and text.isdecimal() and len(text) < 8
        if not good or not least <= int(text) < _MAX:
            raise UserError(
                f"the environment has {name}={text}, which has to be an integer, at least "
                f"{least}: {_ADVICE}"
            )
        found[name] = int(text)
    return found


def _shown(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in found.items())
