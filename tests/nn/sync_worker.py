"""One of two processes with a share of the batch each; test_sync.py runs it and reads its file."""

from pathlib import Path

import torch
import torch.distributed as dist
from numpy_lstm import packed, randomize, sequences

from elstm.nn import CELL_NORMS, ELSTMBN, recompute_statistics

F, H = 3, 2
# Name: (steps, lengths of all sequences or None); the first process has the first `share` of them.
BATCHES = {
    "dense": (6, 7, None, 3),
    "packed": (7, 6, [3, 5, 2, 7, 6, 2], 3),  # the first ends earlier; one sequence is left at last
    "one": (6, 4, None, 1),  # a process with a single sequence
}
SHAPES = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "max_steps": 4, "momentum": None},
}


def cases():
    for cell in CELL_NORMS:
        for shape in SHAPES:
            for batch in BATCHES:
                if shape == "plain" or cell in ("update", "terms"):
                    yield cell, shape, batch


def build(cell, shape, **options):
    options = {"max_steps": 8, "dtype": torch.float64} | SHAPES[shape] | options
    return randomize(ELSTMBN(F, H, cell_norm=cell, **options), rows_tracked=2)


def share(batch, rank=None):
    """The input of a process, and weights of its outputs in the loss; all, where rank is None."""
    steps, size, lengths, first = BATCHES[batch]
    own = {None: slice(None), 0: slice(first), 1: slice(first, None)}[rank]
    x, weight = sequences(steps, size, F)[:, own], sequences(size, seed=9)[own]
    if lengths is None:
        return x, weight
    return packed(x[: max(lengths[own])], lengths[own]), weight


def found(layer, input, weight):
    """Gradients of a loss over outputs and state, and the statistics after it."""
    output, (h_n, c_n) = layer(input)
    if isinstance(output, torch.nn.utils.rnn.PackedSequence):
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    parts = (output.pow(3), h_n.square(), c_n)
    layer.zero_grad()
    sum((part.sum((0, 2)) * weight).sum() for part in parts).backward()
    return {k: p.grad for k, p in layer.named_parameters()}, dict(layer.named_buffers())


def penalty(layer, input, weight):
    """Gradients of a loss over the gradient of the outputs' sum: second derivatives."""
    data = input.data if isinstance(input, torch.nn.utils.rnn.PackedSequence) else input
    given = data.clone().requires_grad_()
    if data is not input:
        input = torch.nn.utils.rnn.PackedSequence(given, *input[1:])
    _, (h_n, c_n) = layer(given if data is input else input)
    sums = (h_n.sum((0, 2)) * weight).sum() + c_n.square().sum()
    (gradient,) = torch.autograd.grad(sums, given, create_graph=True)
    layer.zero_grad()
    gradient.square().sum().backward()
    return {k: p.grad for k, p in layer.named_parameters()}


def main(folder: Path, rank: int, world_size: int):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    results = {}
    for case in cases():
        cell, shape, batch = case
        gradients, buffers = found(build(cell, shape, sync_batch_stats=True), *share(batch, rank))
        for gradient in gradients.values():
            dist.all_reduce(gradient)
        results[case] = gradients, buffers
    for name in ("dense", "packed"):
        layer = build("update", "deep", sync_batch_stats=True)
        penalties = penalty(layer, *share(name, rank))
        for gradient in penalties.values():
            dist.all_reduce(gradient)
        results["penalty", name] = penalties
    layer = build("update", "deep")
    batches = [share(batch)[0] for batch in BATCHES]
    recompute_statistics(layer, batches[rank::2], across_processes=True)
    results["recomputed"] = dict(layer.named_buffers())
    layer = build("update", "plain")
    recompute_statistics(layer, batches[:1] if rank else [], across_processes=True)
    results["of one"] = dict(layer.named_buffers())
    try:
        build("update", "plain", sync_batch_stats=True, backend="cpu")(share("dense", rank)[0])
    except ValueError as error:
        results["refused"] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()
