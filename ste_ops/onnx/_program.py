"""An exported program whose quantized weights are integers: what is computed of parameters alone is computed here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.onnx.ops import symbolic

from ste_ops._torch import ASSERT_METADATA, schema_of
from ste_ops.onnx._codes import GRIDS, Grid, along, bits_for, integers_of
from ste_ops.onnx._refused import REFUSED, refusal

STORED = {
    (4, True): torch.int8,
    (4, False): torch.uint8,
    (8, True): torch.int8,
    (8, False): torch.uint8,
    (16, True): torch.int16,
    (16, False): torch.uint16,
}
"""The type of a tensor that holds integers of so many bits, signed or not."""

FOUR_BITS = "_of_four_bits"
"""In the name of integers that an ONNX file holds in four bits."""


def operator_of(node: Node) -> str | None:
    """The operator of ste_ops that a node calls, without what stands before its name in exported programs."""
    target = node.target
    if node.op != "call_function" or getattr(target, "namespace", None) != "ste_ops":
        return None
    return str(schema_of(target).name.split("::")[1]).removeprefix("autograd_")


def refuse_operators(graph: torch.fx.Graph) -> None:
    for node in graph.nodes:
        operator = operator_of(node)
        if operator in REFUSED:
            stack = node.meta.get("nn_module_stack") or {}
            where = [str(path) for path, _ in stack.values() if path]
            place = f", in {where[-1]}" if where else ""
            raise NotImplementedError(f"export: {refusal(operator)}{place}")


def _constant_nodes(graph: torch.fx.Graph) -> set[Node]:
    constant: set[Node] = set()
    for node in graph.nodes:
        called = node.op == "call_function" and schema_of(node.target) is not None
        if node.op == "get_attr" or (called and _is_function(node) and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    # What is written in place has one number before and another after, and so may have what shares its memory.
    spoiled = [node for writer in graph.nodes if _writes(writer) for node in writer.all_input_nodes if node in constant]
    while spoiled:
        node = spoiled.pop()
        constant.discard(node)
        around = [*node.users, *(other for other in node.all_input_nodes if other.op != "get_attr")]
        spoiled.extend(other for other in around if other in constant)
    return constant


def _writes(node: Node) -> bool:
    return node.op == "call_function" and getattr(schema_of(node.target), "is_mutable", False)


def _is_function(node: Node) -> bool:
    """Whether it makes the same of the same, and changes nothing."""
    return not _writes(node) and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


class _Constants:
    """What a program computes of its parameters and buffers alone, as far as operators of ste_ops need or make it."""

    def __init__(self, program: GraphModule) -> None:
        self.program = program
        self.values: dict[Node, Any] = {}
        constant = _constant_nodes(program.graph)
        needed: set[Node] = set()
        for node in reversed(program.graph.nodes):
            if operator_of(node) and node in constant:
                needed.add(node)
            if operator_of(node) or node in needed:
                needed.update(constant.intersection(node.all_input_nodes))
        self.nodes = [node for node in program.graph.nodes if node in needed]

    @torch.no_grad()
    def compute(self) -> None:
        for node in self.nodes:
            target: Any = node.target
            if node.op == "get_attr":
                held: Any = self.program
                for name in target.split("."):
                    held = getattr(held, name)
                self.values[node] = held.detach() if isinstance(held, Tensor) else held
            else:
                self.values[node] = target(*self.known(node.args), **self.known(node.kwargs))

    def known(self, arguments: Any) -> Any:
        return map_arg(arguments, lambda node: self.values[node])

    def borders(self) -> list[Node]:
        """Those of which something else makes use."""
        found = [node for node in self.nodes if node.op != "get_attr" and isinstance(self.values[node], Tensor)]
        return [node for node in found if not all(user in self.values for user in node.users)]

    def name(self, node: Node) -> str:
        """Of the parameter that it is computed of."""
        if node.op == "get_attr":
            return str(node.target)
        named = [self.name(given) for given in node.all_input_nodes]
        return next((name for name in named if not name.startswith("constant")), "constant")

    def same(self, node: Node) -> Any:
        """Equal for nodes that compute the same."""
        if node.op == "get_attr":
            return node.target
        return node.target, str(map_arg((node.args, node.kwargs), self.same))


def fold(program: GraphModule) -> None:
    """Puts the integers of quantized weights in the place of these, and what else operators ask of parameters."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is ASSERT_METADATA:
            graph.erase_node(node)
    constants = _Constants(program)
    constants.compute()
    _tell_zero_points(constants)
    made: dict[Any, Node] = {}
    for node in constants.borders():
        same = constants.same(node)
        if same not in made:
            with graph.inserting_before(node):
                made[same] = _Maker(program, constants, node).make()
        node.replace_all_uses_with(made[same])
    for node in reversed(graph.nodes):
        if not node.users and node in constants.values:
            graph.erase_node(node)
    _forget_unused(program)
    program.recompile()


def _tell_zero_points(constants: _Constants) -> None:
    """To what quantizes activations, as numbers where they are one, or all 0."""
    for node in constants.program.graph.nodes:
        if operator_of(node) == "fake_quantize" and node not in constants.values and node.args[2] in constants.values:
            zero_point = constants.values[node.args[2]]
            if zero_point.numel() == 1 or not bool(zero_point.any()):
                number = float(zero_point.reshape(-1)[0])
                node.args = (*node.args[:2], None, node.args[3], number, *node.args[5:])


class _Maker:
    """Of one weight the nodes that make it of its integers; or, where there are none, the weight itself."""

    def __init__(self, program: GraphModule, constants: _Constants, node: Node) -> None:
        self.program, self.graph = program, program.graph
        self.name, self.q = constants.name(node), constants.values[node]
        self.grid = _grid(constants, node)
        self.wide = torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def make(self) -> Node:
        q, grid = self.q, self.grid
        integers = None if grid is None else integers_of(q, grid)
        if grid is None or integers is None:
            return self._held("folded", q)
        bits = bits_for(grid.low, grid.high)
        if self.wide == torch.float64 or grid.scale is None or (bits is None and grid.zero_point is not None):
            made = self._by_nodes(self._dequantized(integers, Grid(grid.low, grid.high, torch.ones(()))), grid)
        else:
            made = self._dequantized(integers, grid)
            made = made if grid.offset is None else self._call("add", made, self._laid("offset", grid.offset))
        return self._cast(made, q.dtype)

    def _dequantized(self, integers: Tensor, grid: Grid) -> Node:
        """(integers - zero_point) * scale in float32. No optimizer makes floats in the file of this node."""
        bits, scale = bits_for(grid.low, grid.high), grid.scale
        assert scale is not None
        stored = torch.int32 if bits is None else STORED[bits, grid.low < 0]
        mark = FOUR_BITS if bits == 4 else ""
        shape = () if scale.numel() == 1 else (scale.numel(),)
        inputs = [self._held("codes" + mark, integers.to(stored)), self._held("scale", scale.float().reshape(shape))]
        if grid.zero_point is not None:
            zero_point = grid.zero_point.reshape(-1).expand(scale.numel()).reshape(shape)
            inputs.append(self._held("zero_point", zero_point.to(stored)))
        attributes = {"axis": int(grid.axis or 0) % self.q.dim()} if shape else {}
        kind: dict[str, Any] = {"dtype": torch.float32, "shape": list(self.q.shape), "version": 21}
        return self.graph.call_function(symbolic, ("DequantizeLinear", inputs, attributes), kind)

    def _by_nodes(self, integers: Node, grid: Grid) -> Node:
        """What DequantizeLinear has no type for, or no formula."""
        made = self._cast(integers, self.wide) if self.wide == torch.float64 else integers
        if grid.scale is None:
            unit = self._call("div", made, grid.steps)
            return self._call("sub", self._call("mul", unit, 2), 1) if grid.centred else unit
        if grid.zero_point is not None:
            made = self._call("sub", made, self._laid("zero_point", grid.zero_point))
        made = self._call("mul", made, self._laid("scale", grid.scale))
        return made if grid.offset is None else self._call("add", made, self._laid("offset", grid.offset))

    def _laid(self, name: str, values: Tensor) -> Node:
        axis = None if self.grid is None else self.grid.axis
        return self._held(name, along(values, self.q, axis).to(self.wide).contiguous())

    def _call(self, name: str, x: Node, y: Any) -> Node:
        return self.graph.call_function(getattr(torch.ops.aten, name).Tensor, (x, y))

    def _cast(self, x: Node, dtype: torch.dtype) -> Node:
        return self.graph.call_function(torch.ops.aten.to.dtype, (x, dtype))

    def _held(self, ending: str, values: Tensor) -> Node:
        """A buffer beside the parameter."""
        owner, _, own = f"{self.name}_{ending}".rpartition(".")
        module, count = self.program.get_submodule(owner), 0
        name = own
        while hasattr(module, name):
            count += 1
            name = f"{own}_{count}"
        module.register_buffer(name, values.detach().clone())
        return self.graph.get_attr(f"{owner}.{name}" if owner else name)


def _grid(constants: _Constants, node: Node) -> Grid | None:
    operator = operator_of(node)
    if operator not in GRIDS:
        return None
    names = [argument.name for argument in schema_of(node.target).arguments]
    arguments = dict(zip(names, constants.known(node.args), strict=False)) | constants.known(node.kwargs)
    return GRIDS[operator](constants.values[node], arguments)


def _forget_unused(program: GraphModule) -> None:
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    for held in (
        dict(program.named_parameters(remove_duplicate=False)),
        dict(program.named_buffers(remove_duplicate=False)),
    ):
        for name in held.keys() - used:
            owner, _, own = name.rpartition(".")
            delattr(program.get_submodule(owner), own)
