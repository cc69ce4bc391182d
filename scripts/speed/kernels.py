"""Profiles training steps on a GPU: launches, operations, and the time of each kernel."""

from __future__ import annotations

from typing import Any

import torch

from speed.layers import SHAPES, Shape, work

STEPS = 3


def measure(name: str, shape: Shape) -> dict[str, Any]:
    """Counts launches and operations of a step and sums the time of each kernel, in µs a step."""
    from torch.profiler import ProfilerActivity, profile

    step = work(name, shape, "cuda", True)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    operations = 0
    for event in trace.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.key] = [event.count / STEPS, event.self_device_time_total / STEPS]
        elif event.key.startswith("aten::"):
            operations += event.count
    return {
        "launches": sum(count for count, _ in kernels.values()),
        "operations": operations / STEPS,
        "gpu_us": sum(us for _, us in kernels.values()),
        "kernels": dict(sorted(kernels.items(), key=lambda item: -item[1][1])),
    }


def profiles(name: str) -> list[dict[str, Any]]:
    """Prints launches, operations and kernels of a training step at each shape."""
    rows = []
    for shape_name, shape in SHAPES.items():
        row = {"shape": shape_name, "layer": name} | measure(name, shape)
        rows.append(row)
        print(
            f"{shape_name}: {row['launches']:.0f} launches, {row['operations']:.0f} operations,"
            f" {row['gpu_us']:.0f} us on the GPU"
        )
        for kernel, (count, us) in list(row["kernels"].items())[:12]:
            print(f"    {us:9.1f} us {count:4.0f} x {kernel[:90]}")
    return rows
