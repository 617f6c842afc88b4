"""What a CUDA build of torch can show of CUDA tensors on a machine without a GPU: tracing by fake kernels alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.operator_arguments import ARGUMENTS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ste_ops
from ste_ops import surrogate
from ste_ops._library import ops

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="a torch without CUDA has no fake tensors of it")


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _looks(tree: object) -> list[tuple[object, ...]]:
    return [(t.dtype, t.shape, t.stride()) for t in _tensors(tree)]


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_every_operator_traces_on_cuda(name: str) -> None:
    operator = getattr(ops, name)
    for arguments in ARGUMENTS[name]("cpu"):
        expected = _looks(operator(*arguments))
        with FakeTensorMode():
            fakes = torch.utils._pytree.tree_map_only(
                Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"), arguments
            )
            out = operator(*fakes)
        assert _looks(out) == expected
        assert {t.device for t in _tensors(out)} <= {torch.device("cuda", 0)}


FACES: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": ste_ops.sign,
    "curve": lambda x: ste_ops.heaviside(x, surrogate.ATan()),
    "fake_quantize": lambda x: ste_ops.fake_quantize(x, 0.1, 0.0, -8, 7),
    "clip_gradient_norm": lambda x: ste_ops.clip_gradient_norm(x, 1.0),
    "multinomial": lambda x: ste_ops.multinomial(x.detach().abs(), 3),
    "bernoulli_ste": lambda x: ste_ops.bernoulli_ste(x.sigmoid()),
}


@pytest.mark.parametrize("name", FACES)
def test_dynamo_captures_one_graph_on_cuda(name: str) -> None:
    graphs = []

    def capture(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with FakeTensorMode():
        x = torch.empty(4, 6, device="cuda", requires_grad=True)
        out = torch.compile(FACES[name], backend=capture, fullgraph=True)(x)
    torch._dynamo.reset()
    assert out.device == torch.device("cuda", 0)
    assert len(graphs) == 1
