"""`export` and `translations`."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ste_ops._checks import checked_integer
from ste_ops._torch import tree_map
from ste_ops.onnx._needs import check_packages

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

_LEAST_OPSET = 21  # from which on there are integers of four bits
_ONE_FILE = 2**30 * 3 // 2  # bytes; protobuf ends at 2 GiB


def translations(*, qdq: bool = False) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The operators of ste_ops for ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)``.

    Quantized weights are then floats in the file; `export` writes them as integers.

    Args:
        qdq: True for QuantizeLinear and DequantizeLinear where they have integers for a quantizer, as in `export`. With
            others than 8 bits they need ``opset_version=21``.

    Returns:
        A dict from an operator to its translation, new each time. That of an operator which no file can hold, as one
        that draws at random, raises NotImplementedError with the reason.

    Raises:
        ImportError: onnx or onnxscript is not installed.

    Source: the operators are those of https://onnx.ai/onnx/operators.

    Example:
        >>> import torch, ste_ops
        >>> table = ste_ops.onnx.translations()  # doctest: +SKIP
        >>> model, x = ste_ops.nn.Sign().eval(), torch.randn(4, 8)
        >>> torch.onnx.export(model, (x,), "sign.onnx", custom_translation_table=table)  # doctest: +SKIP
    """
    check_packages("translations")
    from ste_ops.onnx._translate.table import table

    return table(qdq)


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_batch: bool = False,
    dynamic_shapes: Any = None,
    qdq: bool = False,
    opset_version: int = 21,
    **options: Any,
) -> ONNXProgram:
    """Writes what a model computes in evaluation as an ONNX file, its quantized weights as integers.

    Weights become int4, uint4, int8, uint8, int16, uint16 or int32, the narrowest that holds their range, with a
    DequantizeLinear per tensor or per channel that makes the quantized weights of them again, bit for bit. Those of
    `dorefa_weight` take some nodes more, and what is no integers (`sr_ste`, `round` ...) are floats, quantized.

    Activations are quantized by nodes that round as the kernels do: in onnxruntime on a CPU every quantizer gives the
    bits of eager mode, NaN and both zeros included; products are summed in another order. With ``qdq=True`` they are
    QuantizeLinear and DequantizeLinear, of which runtimes make integer kernels. These divide by the scale where the
    kernels here multiply by its reciprocal, so an x that lies within a rounding error of a tie may come out one step
    away; a NaN becomes any integer. `bitnet_activation`, float64 and more than 16 bits stay nodes.

    Packed layers are written with the integers that they hold, and give the bits of the packed layer where these are
    signs on both sides.

    The model itself is not changed. What draws at random cannot be exported, and is refused by name;
    `ste_ops.nn.StochasticRound` does not draw in evaluation.

    Args:
        model: a module whose scales are set; it is exported as it is in evaluation.
        args: a tuple of example inputs.
        path: where to write; None: nothing is written. Beyond 1.5 GiB weights go to a second file beside it.
        kwargs: example inputs by name.
        dynamic_batch: True leaves the size of dimension 0 of every input open, as ``batch``; examples need two samples.
        dynamic_shapes: in its place which sizes are open, as in `torch.onnx.export`.
        qdq: as above.
        opset_version: at least 21.
        options: others of `torch.onnx.export`, as ``input_names`` and ``output_names``.

    Returns:
        The `torch.onnx.ONNXProgram`: its ``model_proto`` is the file, and a call of it runs onnxruntime.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        NotImplementedError: the model calls an operator that no file can hold.
        TypeError: model is no module, or args no tuple.
        ValueError: an example has fewer than two samples though the batch is dynamic, or opset_version is below 21.
        RuntimeError: a scale is not set yet.

    Source: the operators are those of https://onnx.ai/onnx/operators.

    Example:
        >>> import torch, ste_ops
        >>> from ste_ops.nn import LSQ, QuantLinear
        >>> layer = QuantLinear(64, 32, weight_quantizer=LSQ(4, axis=0), input_quantizer=LSQ(8, scale=0.1)).eval()
        >>> x = torch.randn(2, 64)
        >>> program = ste_ops.onnx.export(layer, (x,), "layer.onnx", dynamic_batch=True)  # doctest: +SKIP
        >>> torch.testing.assert_close(program(x)[0], layer(x))  # doctest: +SKIP
    """
    check_packages("export")
    _check(model, args)
    opset_version = checked_integer("export", "opset_version", opset_version, _LEAST_OPSET)
    if dynamic_batch:
        if dynamic_shapes is not None:
            raise ValueError("export: dynamic_batch and dynamic_shapes say the same thing; give one of them")
        dynamic_shapes = _open_batch(model, args, kwargs)
    program = torch.onnx.export(
        _folded(model, args, kwargs, dynamic_shapes),
        args,
        kwargs=kwargs,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        opset_version=opset_version,
        custom_translation_table=translations(qdq=qdq),
        **{"verbose": False, **options},
    )
    assert program is not None
    _narrow(program)
    _forget_traces(program)
    if path is not None:
        values = (value.const_value for value in program.model.graph.initializers.values())
        held = sum(value.nbytes for value in values if value is not None)
        program.save(path, external_data=held > _ONE_FILE)
    return program


def _check(model: Any, args: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model must be a module, got {type(model).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"export: args must be a tuple of example inputs, as (x,), got {type(args).__name__}")


def _open_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    def of(x: Any) -> dict[int, str] | None:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return None
        if x.shape[0] < 2:
            raise ValueError(
                f"export: with dynamic_batch an example must have two samples or more, got shape {tuple(x.shape)}; of "
                "one, torch.export would keep that there is one"
            )
        return {0: "batch"}

    given = inspect.signature(model.forward).bind(*args, **(kwargs or {})).arguments
    return dict(tree_map(of, dict(given)))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _folded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None, dynamic_shapes: Any) -> nn.Module:
    from ste_ops.onnx._packed import in_file
    from ste_ops.onnx._program import fold, refuse_operators

    open_sizes = tree_map(lambda size: torch.export.Dim.DYNAMIC if isinstance(size, str) else size, dynamic_shapes)
    with _evaluating(model), in_file(model):
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=open_sizes)
    program: Any = exported.module(check_guards=False)
    refuse_operators(program.graph)
    fold(program)
    return program  # type: ignore[no-any-return]


def _narrow(program: ONNXProgram) -> None:
    """Integers of four bits, for which torch has no tensors."""
    import onnx_ir as ir

    from ste_ops.onnx._program import FOUR_BITS

    graph = program.model.graph
    for name, codes in list(graph.initializers.items()):
        if FOUR_BITS not in name:
            continue
        signed = codes.const_value.dtype == ir.DataType.INT8  # type: ignore[union-attr]
        dtype = ir.DataType.INT4 if signed else ir.DataType.UINT4
        for place, (node, _) in enumerate(codes.uses()):
            if len(node.inputs) == 3:
                # A tensor of its own: zero points that look alike may have become one.
                zero_point = _narrowed(node.inputs[2].const_value, dtype)  # type: ignore[union-attr]
                held = ir.Value(name=f"{name}_zero_point{place or ''}".replace(FOUR_BITS, ""), const_value=zero_point)
                held.dtype, held.shape = dtype, zero_point.shape
                graph.register_initializer(held)
                node.replace_input_with(2, held)
        codes.const_value, codes.dtype = _narrowed(codes.const_value, dtype), dtype
        codes.name = name.replace(FOUR_BITS, "")


def _narrowed(tensor: Any, dtype: Any) -> Any:
    import onnx_ir as ir

    return ir.tensor(tensor.numpy().astype(dtype.numpy()))


def _forget_traces(program: ONNXProgram) -> None:
    """What torch notes of how it came to each node, which is most of a small file and names files of this machine."""
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        for key in [key for key in node.metadata_props if key.startswith("pkg.torch")]:
            del node.metadata_props[key]
