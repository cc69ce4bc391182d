"""Runs the recurrence on CUDA in Triton kernels: one launch for all steps, forward or backward.

`auto` takes this backend on GPUs of compute capability 9, because it was measured on an H200. By
name (backend="triton") it runs on others from 8.0 on. Without a GPU, tests run the kernels in
Triton's interpreter, with one process for each program where they exchange data at a barrier.

It serves cell_norm none, output and update, in float32: lower precisions are cast to it, and the
output is cast back. W_x x_t of all steps, dW_x, dx and dW_h are large products by torch.mm, which
uses TF32 if the user allows it. The products inside the kernels never use it. For the backward pass
the forward pass saves h_t and c_t, 2 T B H numbers. The projections are computed again there, so
that `recompute` changes nothing; they take 8 T B H numbers while it runs.

No call here reads a tensor on the host or waits for the GPU, so a layer can be captured in a CUDA
graph, by torch.cuda.graph or torch.cuda.make_graphed_callables. What to mind:

- Call the layer with the same shapes before the capture, forward and backward, on the stream that
  captures: Triton compiles each kernel at its first call.
- Such a call in training moves the running statistics. Use batches that count, or restore the
  buffers from a state_dict afterwards.
- Training or eval mode and the lengths of a packed batch are fixed in the graph. A packed batch of
  the same lengths must have been through the layer before the capture.

Launches of a training step, forward and backward: 5 kernels and 13 operations of torch, with a
packed batch 20 to 22 operations. On an H200 (torch 2.11, Triton 3.6) a training step with T 28,
B 128 and H 128 keeps the GPU busy for 0.51 ms, of which the two kernels that loop over time take
0.35. One with T 784, B 100 and H 100 takes 12.3 ms, 6.0 of them in `backward` and 4.6 in `forward`.
Without a graph the former takes about 3 ms, because Python launches more slowly than the GPU works.
"""

from elstm.nn.backends.cuda.autograd import recurrence, refuses

__all__ = ["recurrence", "refuses"]
