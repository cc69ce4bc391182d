"""Two gloo processes with shares of a batch against one with the whole of it, in float64."""

import multiprocessing

import pytest
import sync_worker
import torch
from numpy_lstm import assert_close
from sync_worker import BATCHES, build, cases, found, penalty, share

from elstm.nn import recompute_statistics

PROCESSES = 2


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Returns the results of each process, by case."""
    folder = tmp_path_factory.mktemp("sync")
    context = multiprocessing.get_context("forkserver")  # which imports torch once for all
    context.set_forkserver_preload(["torch.distributed"])
    started = [
        context.Process(target=sync_worker.main, args=(folder, rank, PROCESSES))
        for rank in range(PROCESSES)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in started] == [0] * PROCESSES
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", list(cases()), ids="-".join)
def test_two_processes_are_as_one_with_the_whole_batch(processes, case):
    cell, shape, batch = case
    gradients, buffers = found(build(cell, shape, backend="reference"), *share(batch))
    for process in processes:
        for name, gradient in gradients.items():
            assert_close(process[case][0][name], gradient.numpy())
        for name, buffer in buffers.items():
            assert_close(process[case][1][name], buffer.numpy())
            assert torch.equal(process[case][1][name], processes[0][case][1][name])


@pytest.mark.parametrize("batch", ["dense", "packed"])
def test_second_derivatives_are_those_of_the_full_batch(processes, batch):
    expected = penalty(build("update", "deep", backend="reference"), *share(batch))
    assert expected["weight_hh_l0"].abs().max() > 1e-4
    for process in processes:
        for name, gradient in expected.items():
            assert_close(process["penalty", batch][name], gradient.numpy())


def test_recomputed_statistics_are_pooled_over_the_processes(processes):
    for result, batches in ("recomputed", list(BATCHES)), ("of one", list(BATCHES)[:1]):
        layer = build("update", "deep" if result == "recomputed" else "plain")
        recompute_statistics(layer, [share(batch)[0] for batch in batches])
        for process in processes:
            for name, buffer in layer.named_buffers():
                assert_close(process[result][name], buffer.numpy())
                assert torch.equal(process[result][name], processes[0][result][name])


def test_a_fused_backend_is_refused_by_name(processes):
    message = "backend 'cpu' cannot serve this call: it computes the statistics"
    for process in processes:
        assert process["refused"].startswith(message)


def test_a_process_alone_synchronises_with_nobody():
    layer = build("update", "plain", sync_batch_stats=True)
    alone = build("update", "plain")
    for one, other in zip(
        found(layer, *share("packed")), found(alone, *share("packed")), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert layer.last_backend == alone.last_backend
