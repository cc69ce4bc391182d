"""Defines the base class of all layers: options, initial state, directions, packed input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from elstm.nn import init
from elstm.nn.backends import check_backend, choose
from elstm.nn.backends.compiling import (
    has_varied,
    remember_varying,
    traced,
    untraced,
    varies,
)
from elstm.nn.convert import converted
from elstm.nn.recurrence import Call, Recurrence, Results, check_shapes, recurrence
from elstm.nn.sequences import pack_like, reverse_active, unpack

Layer = TypeVar("Layer", bound="RecurrentBase")
State = tuple[Tensor, ...]  # (h, c); of a GRU (h,)


def check_size(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_shape(input_size: int, hidden_size: int, num_layers: int, dropout: float) -> None:
    """Raises ValueError unless the sizes are positive and `dropout` is a probability."""
    check_size("input_size", input_size)
    check_size("hidden_size", hidden_size)
    check_size("num_layers", num_layers)
    if not init.is_number(dropout) or not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a probability in [0, 1], got {dropout!r}")


def check_auto_or_reference(name: str) -> None:
    """Raises ValueError unless `name` is "auto" or "reference"; some layers have no others."""
    if name not in ("auto", "reference"):
        raise ValueError(f"backend must be auto or reference for this layer; got {name!r}")


def _batch_of_one(hx: State) -> State:
    """Adds the batch dimension to the state of an unbatched input.

    Raises:
        ValueError: it has that dimension already.
    """
    for part in hx:
        if part.dim() != 2:
            raise ValueError(
                "the state of an unbatched input must be 2-D (num_layers * directions, features);"
                f" got {tuple(part.shape)}"
            )
    return tuple(part.unsqueeze(1) for part in hx)


class Direction(NamedTuple):
    """Holds the weights and norms of one layer of an LSTM in one direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None
    norms: tuple[Any, ...]  # norm_ih, norm_hh, norm_c and norm_c2; None where there is none
    cell_norm: str


class RecurrentBase(nn.Module):
    """Runs all layers and directions of a recurrent module, from an initial state.

    This is a mix-in for modules with the attributes of torch.nn.LSTM. A subclass implements
    `_direction`, the weights of one layer in one direction, and `_recur`, which runs it.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    bias: Any
    batch_first: bool
    dropout: float
    bidirectional: bool
    max_steps: int
    forget_bias: float | str
    input_bias: float | str
    recurrent_init: str
    state_noise: float
    learn_initial_state: bool
    backend: str
    recompute: bool
    last_backend: str | None
    _batch_statistics: bool  # set by elstm.nn.batch_statistics
    sync_batch_stats: bool = False  # layers with batch statistics set it
    _torch_class: type[nn.RNNBase] = nn.LSTM  # what from_torch takes
    # The equations of one layer in one direction; takes states=, a list that is given each state.
    _reference: Callable[..., Any] = staticmethod(recurrence)

    @classmethod
    def from_torch(cls: type[Layer], module: nn.RNNBase, **options: Any) -> Layer:
        """Builds this layer from a torch.nn.LSTM (a GRU from a torch.nn.GRU).

        The new layer has the sizes, dtype, device, mode and weights of `module`, and its frozen
        weights stay frozen. A layer with one bias takes the sum of torch's two. `options` are
        further arguments of this layer. Norms are as in a new layer, so a layer with norms computes
        other values until it has been trained.

        Raises:
            TypeError: `module` is of another class, or `options` sets an argument that `module`
                fixes.
            ValueError: this layer cannot have an option of `module`, such as proj_size.
        """
        return converted(cls, cls._torch_class, module, options)

    def _set_options(
        self,
        max_steps: int,
        recurrent_init: str,
        state_noise: float,
        learn_initial_state: bool,
        backend: str,
        recompute: bool = False,
        **gate_biases: float | str,
    ) -> None:
        check_size("max_steps", max_steps)
        for name, value in gate_biases.items():
            init.check_gate_bias(name, value)
            setattr(self, name, value)
        if recurrent_init not in init.RECURRENT_INITS:
            allowed = ", ".join(init.RECURRENT_INITS)
            raise ValueError(f"recurrent_init must be one of {allowed}; got {recurrent_init!r}")
        if not init.is_number(state_noise) or state_noise < 0:
            raise ValueError(f"state_noise must be a number >= 0, got {state_noise!r}")
        check_backend(backend)
        self.max_steps = max_steps
        self.recurrent_init = recurrent_init
        self.state_noise = state_noise
        self.learn_initial_state = learn_initial_state
        self.backend = backend
        self.recompute = recompute
        self.last_backend = None
        self._batch_statistics = False

    @property
    def _state_sizes(self) -> dict[str, int]:
        """Returns the parts of the initial state: their names and their numbers of features."""
        return {"h_0": self.hidden_size, "c_0": self.hidden_size}

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self) -> list[str]:
        reverse = ("", "_reverse")[: self._directions]
        return [f"l{layer}{end}" for layer in range(self.num_layers) for end in reverse]

    def _add_initial_state(self, **factory: Any) -> None:
        """Adds the parameters h_0 and c_0 (L * D, 1, H), which start at zero."""
        rows = self.num_layers * self._directions
        for name, features in self._state_sizes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(rows, 1, features, **factory)))

    _draw = init.draw

    def __prepare_scriptable__(self) -> Any:
        """Refuses torch.jit.script, which calls this method and would name a type annotation."""
        raise NotImplementedError(
            f"torch.jit.script cannot compile {type(self).__name__}; use torch.export"
        )

    def _reset_initial_state(self) -> None:
        for name in self._state_sizes:
            if hasattr(self, name):  # torch's layers reset theirs before it is added
                self._draw(name, nn.init.zeros_)

    def _given_state(self, hx: Any) -> State:
        """Returns the state that the caller gives, as a tuple.

        Raises:
            TypeError: it is no tuple of tensors.
            ValueError: it has another number of parts.
        """
        names = list(self._state_sizes)
        expected = f"hx must be ({', '.join(names)})"
        if not isinstance(hx, tuple | list):
            raise TypeError(f"{expected}, got a {type(hx).__name__}")
        if len(hx) != len(names):
            raise ValueError(f"{expected}, got {len(hx)} parts")
        for name, part in zip(names, hx, strict=True):
            if not isinstance(part, Tensor):
                raise TypeError(f"{name} must be a tensor, got a {type(part).__name__}")
        return tuple(hx)

    def _initial_state(self, hx: State | None, x: Tensor, size: int) -> State:
        """Returns h_0 and c_0 (L * D, B, H) in the input's order of sequences.

        They are given by the caller, learned or zero, with Gaussian noise on h_0 in training. B is
        `size`; `x` gives dtype and device.
        """
        rows = self.num_layers * self._directions
        sizes = self._state_sizes
        if hx is not None:
            state = list(hx)
            for (name, features), part in zip(sizes.items(), state, strict=True):
                if part.shape != (rows, size, features):
                    raise ValueError(
                        f"{name} must have shape {(rows, size, features)} (for an unbatched input"
                        f" without the second dimension), got {tuple(part.shape)}"
                    )
        elif self.learn_initial_state:
            state = [getattr(self, name).expand(-1, size, -1) for name in sizes]
        else:
            # One operation for all parts; h is smaller than c in an LSTM with proj_size.
            zeros = x.new_zeros(len(sizes), rows, size, max(sizes.values()))
            state = [
                part[..., :features]
                for part, features in zip(zeros.unbind(0), sizes.values(), strict=True)
            ]
        if self.state_noise and self.training:
            state[0] = state[0] + self.state_noise * torch.randn_like(state[0])
        return tuple(state)

    def _torch_state(self, input: Tensor | PackedSequence, hx: State | None) -> State:
        """Returns the initial state as torch.nn.LSTM takes it, in the input's order.

        The parts are contiguous, because cuDNN refuses others; a learned state is expanded.
        """
        if hx is not None:
            hx = self._given_state(hx)
        if isinstance(input, PackedSequence):
            state = self._initial_state(hx, input.data, int(input.batch_sizes[0]))
        elif input.dim() == 3:
            state = self._initial_state(hx, input, input.shape[0 if self.batch_first else 1])
        else:
            hx = None if hx is None else _batch_of_one(hx)
            state = tuple(part.squeeze(1) for part in self._initial_state(hx, input, 1))
        return tuple(part.contiguous() for part in state)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: State | None,
        recurrence: Recurrence | None = None,
        start_step: int = 0,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Runs all layers and directions, by the backend or by `recurrence` where it is given."""
        if traced() and (isinstance(input, PackedSequence) or self._loops_over(input)):
            return untraced(RecurrentBase._run)(self, input, hx, recurrence, start_step)
        batch = unpack(input, self.batch_first, self.input_size)
        x = batch.x
        if hx is not None:
            hx = self._given_state(hx)
            hx = _batch_of_one(hx) if batch.unbatched else hx
        state = self._initial_state(hx, x, x.shape[1])
        noise = self.state_noise and self.training
        zero = hx is None and not self.learn_initial_state and not noise
        if batch.order is not None and not zero:
            state = tuple(part.index_select(1, batch.order) for part in state)
        final: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for backward in (False, True)[: self._directions]:
                row = len(final)
                steps = reverse_active(x, batch.sizes) if backward else x
                first = tuple(part[row] for part in state)
                suffix = self._suffixes()[row]
                output, last = self._recur(
                    steps, batch.sizes, first, suffix, recurrence, start_step
                )
                outputs.append(reverse_active(output, batch.sizes) if backward else output)
                final.append(last)
            x = torch.cat(outputs, dim=2) if self.bidirectional else outputs[0]
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout)
        # Copies, also of one layer: h_n.detach_() fails on a view, and works with torch.nn.LSTM.
        state = tuple(torch.stack(parts) for parts in zip(*final, strict=True))
        return pack_like(batch, x, state, self.batch_first)

    def _loops_over(self, input: Tensor) -> bool:
        """Returns whether the reference loops over a number of steps that varies.

        It is called where torch.compile traces.
        """
        steps = input.shape[1 if self.batch_first and input.dim() == 3 else 0]
        if not (has_varied(self) or varies(steps)):
            return False  # before last_backend is read: the first call sets it, which would retrace
        return self.last_backend == "reference" and remember_varying(self)

    def _direction(self, suffix: str) -> Any:
        raise NotImplementedError

    def _recur(
        self,
        x: Tensor,
        sizes: list[int] | None,
        state: State,
        suffix: str,
        recurrence: Recurrence | None,
        start_step: int,
    ) -> tuple[Tensor, State]:
        """Runs one layer in one direction.

        Args:
            x: (T, B, I).
            sizes: the number of active rows at each step; None: B.
            state: the initial state, (B, H) each.
            suffix: the end of the parameters' names, such as l0_reverse.
            recurrence: replaces the backend.
            start_step: the step of a longer sequence that x[0] is, for statistics per step.

        Returns:
            output (T, B, H) and the final state.
        """
        raise NotImplementedError

    def _by_backend(self, call: Call, recurrence: Recurrence | None) -> Results:
        check_shapes(call)
        if recurrence is None:
            self.last_backend, recurrence = choose(self.backend, call)
        return recurrence(call)


class SingleBiasWeights(RecurrentBase):
    """Holds the weights of an LSTM with one bias per layer, for layers that torch does not have."""

    def _set_shape(
        self, input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool,
        dropout: float, bidirectional: bool,
    ) -> None:  # fmt: skip
        check_shape(input_size, hidden_size, num_layers, dropout)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, 0
        if dropout and num_layers == 1:  # as torch.nn.LSTM, which the other layers inherit from
            warnings.warn(
                f"dropout={dropout} has no effect with num_layers=1, because it acts on the output"
                " of each layer but the last",
                stacklevel=3,
            )

    def _add_weights(self, **factory: Any) -> None:
        """Adds weight_ih (4H, I), weight_hh (4H, H) and bias (4H,) of each layer and direction."""
        gates = 4 * self.hidden_size
        for row, suffix in enumerate(self._suffixes()):
            lower_layer = row >= self._directions
            features = self.hidden_size * self._directions if lower_layer else self.input_size
            weights: dict[str, tuple[int, ...]] = {
                "weight_ih": (gates, features),
                "weight_hh": (gates, self.hidden_size),
            }
            if self.bias:
                weights["bias"] = (gates,)
            for name, shape in weights.items():
                parameter = nn.Parameter(torch.empty(shape, **factory))
                self.register_parameter(f"{name}_{suffix}", parameter)

    def flatten_parameters(self) -> None:
        """Does nothing; code written for torch.nn.LSTM calls it."""

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Lists the weights and biases of each layer and direction, as torch.nn.LSTM does."""
        names = ("weight_ih", "weight_hh", "bias")[: 3 if self.bias else 2]
        return [[getattr(self, f"{name}_{end}") for name in names] for end in self._suffixes()]

    def _reset_weights(self) -> None:
        biases = self.forget_bias, self.input_bias, self.max_steps
        for suffix in self._suffixes():
            self._draw(f"weight_ih_{suffix}", init.init_weight_ih)
            self._draw(f"weight_hh_{suffix}", init.init_weight_hh, self.recurrent_init)
            if self.bias:
                self._draw(f"bias_{suffix}", init.init_gate_bias, *biases)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        if not self.bias:
            text += ", bias=False"
        for name in ("batch_first", "bidirectional"):
            if getattr(self, name):
                text += f", {name}=True"
        if self.dropout:
            text += f", dropout={self.dropout}"
        return text
