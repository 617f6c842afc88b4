"""Folding where another object is told to step than the one that does."""

from __future__ import annotations

import functools
import importlib.util
import logging
import types

import pytest
import torch
from torch.optim import SGD, Adam

import ste_ops

CLIPPED = torch.tensor([-0.6, -0.8])


def has(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def parameter():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    return p


def sgd(p):
    return SGD([p], lr=1.0, fused=True)


class Delegates(SGD):
    """As trainers make them: of the optimizer's class, with its fields."""

    def __init__(self, inner, name):
        self.__dict__ = dict(inner.__dict__)
        self.__dict__[name] = inner
        self.name = name

    def step(self, closure=None):
        return getattr(self, self.name).step(closure)


class Plain(SGD):
    pass


class Own(SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


@pytest.mark.parametrize("bad", [False, True])
def test_the_optimizer_within_clips_the_first_step_and_skips(decided, bad):
    p = parameter()
    if bad:
        p.grad[0] = torch.nan
    inner = sgd(p)
    outer = Delegates(Delegates(inner, "optimizer"), "optimizer")
    norm = ste_ops.fold_grad_clip_(outer, 1.0)
    outer.step()
    if bad:
        assert norm.isnan()
        assert not p.any()
    else:
        torch.testing.assert_close(p.detach(), CLIPPED)
    for optimizer in (inner, outer):
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()


def test_a_step_of_its_own_is_refused():
    for optimizer in (Delegates(sgd(parameter()), "inner"), Own([parameter()], lr=1.0, fused=True)):
        with pytest.raises(TypeError, match=f"got {type(optimizer).__name__}, which steps in a way of its own"):
            ste_ops.fold_grad_clip_(optimizer, 1.0)
        assert "grad_scale" not in vars(optimizer)


@pytest.mark.parametrize("first", [SGD, Plain])
def test_a_subclass_with_torchs_step_clips(first):
    """The first instance of a class has its step wrapped."""
    first([parameter()], lr=1.0, fused=True)
    for cls in (Plain, SGD):
        p = parameter()
        optimizer = cls([p], lr=1.0, fused=True)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)  # which wraps the step of the object
        ste_ops.fold_grad_clip_(optimizer, 1.0)
        optimizer.step()
        torch.testing.assert_close(p.detach(), CLIPPED)


def own_step(optimizer, closure=None):
    raise AssertionError("a step that was refused")


STEPS = {
    "a method": lambda optimizer: types.MethodType(own_step, optimizer),
    "a function": lambda optimizer: functools.partial(own_step, optimizer),
    "another optimizer's": lambda optimizer: sgd(parameter()).step,
    "another optimizer's, wrapped": lambda optimizer: functools.wraps(step := sgd(parameter()).step)(lambda: step()),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_its_own_on_the_object_is_refused(name):
    optimizer = sgd(parameter())
    optimizer.step = STEPS[name](optimizer)
    with pytest.raises(TypeError, match="got SGD, which steps in a way of its own"):
        ste_ops.fold_grad_clip_(optimizer, 1.0)
    optimizer.optimizer = optimizer
    with pytest.raises(TypeError, match="got SGD, which steps in a way of its own"):
        ste_ops.fold_grad_clip_(optimizer, 1.0)


def test_wrappers_around_the_step_of_the_object_clip():
    """Of schedulers, two of them too, of torch's own step put on the object, and of one that counts."""
    p = parameter()
    optimizer = sgd(p)
    optimizer.step = optimizer.step
    for _ in range(2):
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    step, calls = optimizer.step, []

    @functools.wraps(step)
    def counted(*args, **kwargs):
        calls.append(1)
        return step(*args, **kwargs)

    optimizer.step = counted
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    optimizer.step()
    torch.testing.assert_close(p.detach(), CLIPPED)
    assert calls == [1]


def test_wrappers_in_a_circle_are_refused():
    outer = Delegates(sgd(parameter()), "optimizer")
    outer.optimizer = Delegates(sgd(parameter()), "optimizer")
    outer.optimizer.optimizer = outer
    with pytest.raises(TypeError, match="got Delegates, which steps in a way of its own"):
        ste_ops.fold_grad_clip_(outer, 1.0)


def test_errors_name_the_optimizer_within():
    inner = Adam([parameter()])
    with pytest.raises(ValueError, match="must be fused, got Adam with fused=None"):
        ste_ops.fold_grad_clip_(Delegates(inner, "optimizer"), 1.0)


@pytest.mark.filterwarnings("ignore")  # those of other packages
@has("lightning_fabric")
def test_fabric():
    from lightning_fabric import Fabric

    linear = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(linear.weight)
    _, optimizer = Fabric(accelerator="cpu").setup(linear, SGD(linear.parameters(), lr=1.0, fused=True))
    assert isinstance(optimizer, SGD)
    for gradient, expected in ([3.0, 4.0], -CLIPPED), ([torch.nan, 4.0], 0 * CLIPPED), ([0.3, 0.4], -CLIPPED / 2):
        before = linear.weight.detach().clone()
        linear.weight.grad = torch.tensor([gradient])
        ste_ops.fold_grad_clip_(optimizer, 1.0)
        optimizer.step()
        torch.testing.assert_close(before - linear.weight.detach(), expected[None])


@pytest.mark.filterwarnings("ignore")
@has("accelerate")
def test_accelerate():
    import accelerate

    p = parameter()
    optimizer = accelerate.Accelerator(cpu=True).prepare(sgd(p))
    ste_ops.fold_grad_clip_(optimizer, 1.0)
    optimizer.step()
    torch.testing.assert_close(p.detach(), CLIPPED)


def lightning_modules():
    """Each way to fold under Lightning, by name."""
    from pytorch_lightning import LightningModule

    class Automatic(LightningModule):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))
            self.automatic_optimization = not isinstance(self, Manual)

        def configure_optimizers(self):
            return sgd(self.w)

        def training_step(self, batch):
            return (self.w * torch.tensor([3.0, 4.0])).sum()

    class Manual(Automatic):
        def training_step(self, batch):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch))
            self.fold_and_step(optimizer)

    class InTheHook(Automatic):
        def configure_gradient_clipping(self, optimizer, **kwargs):
            ste_ops.fold_grad_clip_(self.optimizers(), 1.0)

    class InTheStep(Automatic):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            ste_ops.fold_grad_clip_(optimizer, 1.0)
            optimizer.step()

    class ByHand(Manual):
        def fold_and_step(self, optimizer):
            ste_ops.fold_grad_clip_(optimizer, 1.0)
            optimizer.step()

    class ByHandWithin(Manual):
        def fold_and_step(self, optimizer):
            ste_ops.fold_grad_clip_(optimizer.optimizer, 1.0)
            optimizer.step()

    return [InTheHook, InTheStep, ByHand, ByHandWithin]


@pytest.mark.filterwarnings("ignore")
@has("pytorch_lightning")
def test_lightning():
    import pytorch_lightning

    for name in ("pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for module in lightning_modules():
        trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
        trained = module()
        trainer.fit(trained, torch.utils.data.DataLoader([torch.zeros(1)] * 2, batch_size=None))
        torch.testing.assert_close(trained.w.detach(), 2 * CLIPPED, msg=module.__name__)
