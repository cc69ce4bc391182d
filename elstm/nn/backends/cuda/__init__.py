"""The recurrence on CUDA in Triton kernels: one launch runs all steps, forward or backward.

`auto` takes this backend on GPUs of compute capability 9, because it was measured on an H200. By
name (backend="triton") it runs on others from 8.0 on. Without a GPU, tests run the kernels in
Triton's interpreter, with one process for each program where they exchange data at a barrier.

It serves cell_norm none, output and update, in float32: lower precisions are cast to it, and the
output is cast back. W_x x_t of all steps, dW_x, dx and dW_h are large products by torch.mm, which
uses TF32 if the user allows it; the products inside the kernels never do. For the backward pass the
forward pass keeps h_t and c_t, 2 T B H numbers. The projections are computed again there, so that
`recompute` changes nothing; they take 8 T B H numbers while it runs.

No call here reads a tensor on the host or waits for the GPU. So a layer can be captured in a CUDA
graph, also by torch.cuda.make_graphed_callables; see elstm/nn/README.md for what to mind.
"""

from elstm.nn.backends.cuda.autograd import recurrence, refuses

__all__ = ["recurrence", "refuses"]
