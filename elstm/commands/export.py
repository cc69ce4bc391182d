"""Runs `elstm-export RUN_DIR`: writes a trained model as ONNX and torch.export programs."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elstm.cli import Parser, command, data_root_as, home_path, print_line
from elstm.errors import UserError
from elstm.training.ranks import require_one_process

if TYPE_CHECKING:
    import argparse

    import torch

    from elstm.commands.programs import Program

PROG = "elstm-export"
DESCRIPTION = """\
Writes the model of a run for serving: RUN_DIR/export/model.onnx, for onnxruntime, and model.pt2,
for torch.export.load; neither needs elstm. They take raw images, uint8 (batch, rows, columns), in
colour (batch, rows, columns, 3). Or they take unscaled series, float32 (batch, steps, features),
and int64 lengths (batch) if the lengths differ. Batch and steps may have any size. They give logits
and probabilities. Both are checked against the model on the test split before they are written.
ONNX needs: pip install 'elstm[onnx]'.
"""
FORMATS = ("onnx", "pt2")
OPSET = 18  # the lowest that torch's exporter writes
SIZES = (1, 7)  # of the first batches of the check; the last has the rest
ROUNDING = 0.01  # of the largest logit: the most by which a program's logits may differ
# Bytes that each program of this command holds, in its metadata.
MARKS = {"onnx": b"class_names", "pt2": b"elstm.json"}

Inputs = tuple["torch.Tensor", ...]
Run = Callable[..., "torch.Tensor"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (see elstm.cli)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return command(PROG, lambda: _main(_parse(arguments)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog=PROG, description=DESCRIPTION)
    parser.add_run()
    parser.add_argument(
        "--format",
        choices=("all", *FORMATS),
        default="all",
        help="format (default: all, which writes both)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=home_path,
        metavar="DIR",
        help="folder for the programs (default: RUN_DIR/export)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help="number of test images or sequences in the check (default: 1000)",
    )
    parser.add_data_root()
    args = parser.parse_args(arguments)
    if args.images < 10:
        parser.error(f"argument --images: has to be at least 10, got {args.images}")
    return args


def _main(args: argparse.Namespace) -> int:
    import io
    import json

    import torch

    from elstm.commands.programs import export_program
    from elstm.config.schema import data_with_seed
    from elstm.data.load import load_data, with_location
    from elstm.files.atomic import refuse_no_folder, write_together
    from elstm.training.data_facts import check_same_data, is_stratified
    from elstm.training.trained import load_trained

    require_one_process(PROG)
    formats = FORMATS if args.format == "all" else (args.format,)
    if "onnx" in formats:
        _need_onnx()
    folder = args.output or args.run_dir / "export"
    if args.output is None:
        refuse_no_folder(folder)
    for name in formats:
        _check_replaceable(folder / f"model.{name}", MARKS[name])
    trained = load_trained(args.run_dir, args.checkpoint, args.weights)
    source = data_with_seed(trained.config)
    if args.data_root is not None:
        source = with_location(source, args.data_root)
    with data_root_as("--data-root"):
        data = load_data(source, stratify=is_stratified(trained.facts))
        check_same_data(trained.facts, data)
    try:
        served, inputs = _served(trained, data, source)
    except TypeError as error:
        raise UserError(f"{args.run_dir} cannot be exported: {error}") from error
    inputs = tuple(part[: args.images] for part in inputs)
    facts = _metadata(trained, args.run_dir, served.described())
    print_line(f"{PROG}: tracing {trained.config.model.name}, {data.num_steps} steps")
    program = export_program(served)

    with torch.no_grad():  # as elstm-predict computes
        batches = data.eval_batches("test", min(args.images, 1000))
        count = -(-len(inputs[0]) // min(args.images, 1000))
        expected = torch.cat([trained.model(x) for x, _ in islice(batches, count)])
    expected = expected[: args.images]
    contents: dict[str, bytes] = {}
    lines = []
    for name in formats:
        if name == "pt2":
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={"elstm.json": json.dumps(facts)})
            contents[name] = buffer.getvalue()
            run, runs = _torch_run(contents[name]), "torch"
        else:
            contents[name] = _to_onnx(program, facts, served.names)
            run, runs = _onnx_run(contents[name], served.names), "onnxruntime"
        lines.append(f"model.{name:<5} {_check(name, run, runs, inputs, expected)}")

    write_together(folder, {f"model.{name}": content for name, content in contents.items()})
    print(f"{trained.config.model.name} on {data.name}, {trained.path} -> {folder}")
    if trained.weights_text is not None:
        print(f"weights: {trained.weights_text}")
    print("\n".join(lines))
    return 0


def _served(trained: Any, data: Any, source: Any) -> tuple[Program, Inputs]:
    """Returns the model with what it takes, and the raw inputs of the test split.

    Raises:
        TypeError: its layers are of a kind that cannot be exported.
    """
    import torch

    from elstm.commands.programs import ImageProgram, SeriesProgram
    from elstm.data.load import raw_series
    from elstm.data.sequences import ImageSequences

    if isinstance(data, ImageSequences):
        images = ImageProgram(trained.model, trained.facts)
        return images, (data.test.images.view(-1, *images.size),)
    part = raw_series(source, "test")
    series = SeriesProgram(
        trained.model, trained.facts, trained.config.data.missing, unequal=data.unequal
    )
    values = torch.from_numpy(part.values)
    if not data.unequal:
        return series, (values[:, : int(part.lengths[0])],)
    return series, (values, torch.from_numpy(part.lengths))


def _check_replaceable(path: Path, mark: bytes) -> None:
    """Raises UserError if a file of this name is not from an earlier export."""
    try:
        foreign = path.exists()
        if path.is_file() and path.stat().st_size:
            # Not read at once, because a model may be larger than the memory.
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                foreign = content.find(mark) < 0
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if foreign:
        raise UserError(
            f"{path} was not written by {PROG}: move it away, or name another folder with -o"
        )


def _need_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {', '.join(missing)}: pip install 'elstm[onnx]', or take --format pt2"
        )


def _metadata(trained: Any, run_dir: Path, inputs: str) -> dict[str, str]:
    """Returns the metadata that both programs carry."""
    import json

    import elstm
    from elstm.records.status import read_status

    status = read_status(run_dir) or {}
    facts = trained.facts
    return {
        "class_names": json.dumps(facts["class_names"]),
        "data": facts["name"],
        "model": trained.config.model.name,
        "checkpoint": trained.path.name,
        "epoch": str(trained.epoch),
        "step": str(trained.step),
        "weights": trained.weights,
        "git_commit": str(status.get("git_commit") or ""),
        "elstm": elstm.__version__,
        "input": inputs,
        **({"features": json.dumps(facts["features"])} if "features" in facts else {}),
    }


def _to_onnx(
    program: torch.export.ExportedProgram, facts: dict[str, str], names: Sequence[str]
) -> bytes:
    """Converts the program to an ONNX model, whose time loops are Scan nodes."""
    import logging
    import warnings

    import onnx
    import torch

    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, input_names=list(names), output_names=["logits", "probabilities"],
                opset_version=OPSET, dynamo=True, verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    # torch chooses the names of the dimensions.
    dims = graph.input[0].type.tensor_type.shape.dim
    named = zip(dims, ("batch", "steps"), strict=False)
    symbols = {dim.dim_param: name for dim, name in named if dim.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = symbols[dim.dim_param]
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _torch_run(content: bytes) -> Run:
    import io

    import torch

    program = torch.export.load(io.BytesIO(content)).module()

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = program(*inputs)[0]
        return logits

    return run


def _onnx_run(content: bytes, names: Sequence[str]) -> Run:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        given = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["logits"], given)[0])

    return run


def _check(name: str, run: Run, runs: str, inputs: Inputs, expected: torch.Tensor) -> str:
    """Compares a program with the model on test data, in batches of several sizes.

    Series of several lengths are cut to the longest of each batch.

    Raises:
        UserError: the logits differ by more than rounding. If they do not, a prediction can differ
            only where two classes tie.
    """
    import torch

    total, first, found = len(expected), 0, []
    for size in (*SIZES, total):
        batch = tuple(part[first : min(first + size, total)] for part in inputs)
        if len(batch[0]):
            if len(batch) > 1:
                batch = (batch[0][:, : int(batch[1].max())], batch[1])
            found.append(run(*batch))
        first += size
    logits = torch.cat(found)
    differ = int((logits.argmax(1) != expected.argmax(1)).sum())
    largest = float((logits - expected).abs().max())
    what = "sequences" if inputs[0].is_floating_point() else "images"
    where = f"{total:,} test {what} in {runs}"
    if not largest <= ROUNDING * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"model.{name} was not written: of {where}, {differ} predictions differ from the "
            f"model's, logits by up to {largest:.1e}"
        )
    ties = f" but for {differ} where two classes tie" if differ else ""
    return f"{where}: the same predictions{ties}, logits differ by at most {largest:.1e}"


if __name__ == "__main__":
    sys.exit(main())
