"""The end of the demo: nets are folded, packed, saved and loaded in a new process, which finds the same bits."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace

import pytest
import torch

import ste_ops
from ste_ops import __main__ as command
from ste_ops.demo import data, deploy, nets, report, train

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

EPOCHS, HIDDEN = 3, 256


@pytest.fixture(scope="module")
def dataset():
    return data.imbalance(data.digits(seed=0), seed=0)


@pytest.fixture(scope="module")
def run(dataset):
    """The demo's first run; on one thread, as the nets are measured."""
    with nets.one_thread():
        made = train.prepare(dataset, train.NATIVE, weighted=True, epochs=EPOCHS, seed=0, device="cpu")
        train.train([made], EPOCHS)
    return made


@pytest.fixture(scope="module")
def deployed(dataset, run, tmp_path_factory):
    """Beside the result, what is left of the files."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch, nets.one_thread():
        patch.setattr(tempfile, "tempdir", str(folder))
        return deploy.deploy(dataset, run, HIDDEN, EPOCHS, seed=0, device="cpu"), list(folder.iterdir())


def test_the_packed_net_answers_as_the_trained_one(run, deployed):
    narrow, wide = deployed[0]
    assert (narrow.hidden, narrow.epochs, wide.hidden, wide.epochs) == (train.HIDDEN, EPOCHS, HIDDEN, EPOCHS)
    assert narrow.accuracy["packed"] == narrow.accuracy["quantized"] == run.accuracy[-1]
    assert wide.accuracy["packed"] == wide.accuracy["quantized"] > 0.8
    assert narrow.changed == wide.changed == 0
    assert narrow.accuracy["float"] > 0.8
    assert min(seconds for net in deployed[0] for seconds in net.seconds.values()) > 0


def test_the_packed_file_holds_bits(deployed):
    wide = deployed[0][1]
    weights = 64 * HIDDEN + HIDDEN * HIDDEN + HIDDEN * data.CLASSES
    assert 4 * weights < wide.bytes["float"] < 4.2 * weights
    assert 4 * weights < wide.bytes["quantized"] < 4.2 * weights
    # The thresholds are 2 * 2 floats for each hidden unit, names and layout of torch.save's archive the rest.
    assert weights / 8 + 16 * HIDDEN < wide.bytes["packed"] < weights / 8 + 16 * HIDDEN + 8000


def test_no_file_is_left(deployed):
    assert deployed[1] == []


def test_the_float_net_is_the_one_that_was_trained(dataset):
    run = train.prepare(dataset, train.FLOAT, weighted=True, epochs=1, seed=0, device="cpu", hidden=32)
    train.train([run], 1)
    with nets.one_thread(), torch.no_grad():
        net = nets.finish("float", run.net.state_dict(), 32, dataset.test_images)
        assert not any(isinstance(module, torch.nn.BatchNorm1d) for module in net.modules())
        torch.testing.assert_close(net(dataset.test_images), run.net(dataset.test_images), rtol=1e-4, atol=1e-4)


def test_the_quantized_net_is_the_one_that_was_trained(dataset, run):
    with nets.one_thread(), torch.no_grad():
        net = nets.finish("quantized", run.net.state_dict(), train.HIDDEN, dataset.test_images)
        assert [row.into for row in ste_ops.nn.folded(net)] == ["threshold", "threshold", "scale"]
        torch.testing.assert_close(net(dataset.test_images), run.net(dataset.test_images), rtol=1e-4, atol=1e-4)


def test_counting_saved_bytes_leaves_the_net_as_it_is(run):
    before = copy.deepcopy(run.net.state_dict())
    run.saved_bytes()
    assert not run.net.training
    after = run.net.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(SystemExit, match=r"loads the nets must end with status 0, got 1:\n(.|\n)*images\.pt"):
        deploy._load_in_new_process(tmp_path, "cpu", [64])


@pytest.mark.parametrize(
    ("changed", "place"), [("saved", "before it was saved"), ("quantized", "before it was packed")]
)
def test_outputs_that_differ_in_a_bit_are_refused(changed, place):
    saved = {"packed": torch.ones(4, 10)}
    measured = {kind: {"outputs": torch.ones(4, 10)} for kind in nets.KINDS}
    deploy._check(64, saved, measured)
    outputs = saved["packed"] if place == "before it was saved" else measured["quantized"]["outputs"]
    outputs[1, 2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    with pytest.raises(SystemExit, match=f"of 64 hidden units must put out what it did {place}, got 1 of 40 numbers"):
        deploy._check(64, saved, measured)


def made_up(hidden, packed_seconds):
    return deploy.Deployed(
        hidden=hidden,
        epochs=5,
        bytes={"float": 40_000, "quantized": 41_000, "packed": 2_000},
        accuracy={"float": 0.95, "quantized": 0.925, "packed": 0.925},
        seconds={"float": 4e-5, "quantized": 2e-4, "packed": packed_seconds},
        changed=0,
    )


def test_table_says_where_packed_is_slower():
    text = report.deployed([made_up(64, 1e-4), made_up(2048, 1e-5)], images=539)
    assert "\n64 hidden units, 5 epochs\n" in text
    assert "\n  file, bytes                      40,000       41,000        2,000          0.05\n" in text
    assert "\n  test accuracy                     95.0%        92.5%        92.5%\n" in text
    assert "\n  time an image (median), us           40          200          100          2.50\n" in text
    assert "\n  time an image (median), us           40          200           10          0.25\n" in text
    assert "Packed is slower at 64 hidden units" in text
    assert "changed 0 and 0 of 539 answers" in text
    text = report.deployed([replace(made_up(2048, 1e-5), epochs=1)], images=539)
    assert "\n2048 hidden units, 1 epoch\n" in text
    assert "slower" not in text


def test_wrong_sizes_are_refused():
    with pytest.raises(SystemExit, match="--hidden must be at least 1, got -1"):
        command.main(["demo", "--hidden", "-1"])
