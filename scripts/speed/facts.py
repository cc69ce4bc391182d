"""Prints device, versions and two peak rates of a GPU, on which measurements depend.

python scripts/speed/facts.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def milliseconds(run: Any, calls: int = 20) -> float:
    """Returns the mean time of a call on the GPU, by CUDA events."""
    for _ in range(3):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


def facts() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    large, other = (torch.randn(2**28, device="cuda") for _ in range(2))
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": properties.L2_cache_size / 2**20,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
        "driver": driver,
        "copy_tb_per_s": 2 * large.nbytes / milliseconds(lambda: other.copy_(large)) / 1e9,
        "fp32_product_tflops": 2 * 8192**3 / milliseconds(lambda: a @ b, 5) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints device, versions and peak rates.")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    found = facts()
    for name, value in found.items():
        print(f"{name}: {value}")
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
