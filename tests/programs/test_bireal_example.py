"""examples/bireal_resnet18.py: the packed file has a 31st of the float bytes, and a new process finds the same bits."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from examples import bireal_resnet18 as example
from ste_ops.nn import QuantConv2d

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _threads():
    """The example sets them for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_it_goes_from_training_to_a_new_process(monkeypatch, capsys):
    monkeypatch.setattr(example, "ROUNDS", 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    example.main(["--size", "32", "--steps", "1"])
    printed = capsys.readouterr().out
    assert re.search(r"\nbinary layers, bytes +43,941,888 +43,941,888 +1,388,544 +31\.6\n", printed)
    assert re.search(r"\nfile, bytes +46,7\d\d,\d{3} +46,7\d\d,\d{3} +4,2\d\d,\d{3} +11\.1\n", printed)
    for batch in (1, 8):
        assert re.search(rf"\nms an image, batch {batch}( +\d+\.\d\d){{3}} +\d+\.\d\n", printed)
    assert re.search(r"\nnorms folded: outputs moved by \S+ of the largest, \d of 8 answers changed\n", printed)
    assert printed.endswith(
        "packed: outputs equal to the last bit\nloaded in a new process: outputs equal to the last bit\n"
    )


@pytest.mark.parametrize("place", ["packed", "loaded"])
def test_a_bit_that_differs_ends_it(place, capsys):
    outputs = {name: torch.ones(8, 10) for name in ("trained", "quantized", "packed", "loaded")}
    example.compare(**outputs)
    outputs[place] = outputs[place].clone()
    outputs[place][3, 4] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    with pytest.raises(SystemExit, match="equal to the last bit"):
        example.compare(**outputs)
    assert "DIFFER" in capsys.readouterr().out


def test_the_nets_have_the_shape_of_a_resnet18():
    """16 convolutions of 3 x 3 in four stages; the shortcuts have a shape of their own (average, then 1 x 1)."""
    for binary in (False, True):
        with torch.device("meta"):
            net = example.resnet18(binary)
        blocks = [block for block in net if isinstance(block, example.Block)]
        assert [block.conv.out_channels for block in blocks] == [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4
        assert [block.conv.stride[0] for block in blocks] == [1] * 4 + [2, 1, 1, 1] * 3
        assert all(isinstance(block.conv, QuantConv2d) == binary for block in blocks)
        assert net(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
