"""The demo: native and reference train alike, the sampler helps, the table and the picture say so."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys

import pytest
import torch

from ste_ops import __main__ as command
from ste_ops import demo
from ste_ops.demo import data, report, train

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def dataset():
    return data.imbalance(data.digits(seed=0), seed=0)


@pytest.fixture(scope="module")
def runs(dataset):
    return train.compare(dataset, epochs=6, seed=0, device="cpu")


def test_digits_are_imbalanced_to_train_on_and_balanced_to_test_on(dataset):
    sizes = torch.bincount(dataset.train_labels)
    tests = torch.bincount(dataset.test_labels)
    rare = list(data.RARE)
    common = [label for label in range(10) if label not in rare]
    assert sizes[common].min() > 8 * sizes[rare].max()
    assert tests.min() > 0.7 * tests.max()
    assert dataset.train_images.min() == -1
    assert dataset.train_images.max() == 1


def test_native_and_reference_train_alike(runs):
    native, reference, _ = runs
    assert native.losses == reference.losses
    assert native.accuracy == reference.accuracy
    assert native.accuracy[-1] > 0.8


def test_training_flips_signs(runs):
    torch.manual_seed(0)  # the seed of the run
    fresh = train.BinaryNet(64, train.NATIVE).linear[0].weight
    assert (runs[0].net.linear[0].weight.sign() != fresh.sign()).float().mean() > 0.05


def test_a_step_clamps_the_latent_weights_and_clips_the_gradients(dataset, monkeypatch):
    monkeypatch.setattr(train, "MAX_NORM", 1e-3)
    run = train.prepare(dataset, train.NATIVE, weighted=True, epochs=1, seed=0, device="cpu")
    with torch.no_grad():
        run.net.linear[1].weight.fill_(3)
    images, labels = next(iter(run.batches))
    run.step(images, labels)
    assert run.net.linear[1].weight.max() == 1
    grads = [parameter.grad for parameter in run.net.parameters()]
    assert float(torch.nn.utils.get_total_norm(grads)) == pytest.approx(1e-3, rel=1e-4)


def test_weighted_sampler_draws_and_learns_the_rare_classes(runs):
    weighted, _, plain = runs
    four_sigma = 4 * math.sqrt(0.25 / weighted.drawn)
    assert abs(weighted.rare_drawn / weighted.drawn - len(data.RARE) / 10) < four_sigma
    assert plain.rare_drawn / plain.drawn < 0.12
    # 14 points or more at each of the seeds 0 to 11.
    assert weighted.rare_accuracy[-1] > plain.rare_accuracy[-1] + 0.05


def test_saved_bytes_are_one_bit_an_element_natively(runs):
    native, reference, _ = runs
    activations = 2 * train.BATCH * train.HIDDEN
    weights = sum(linear.weight.numel() for linear in native.net.linear)
    saved, by_sign = native.saved_bytes()
    saved_reference, by_sign_reference = reference.saved_bytes()
    assert by_sign == (activations + weights) // 8
    assert by_sign_reference == 4 * activations
    assert saved_reference - saved == by_sign_reference - by_sign


def test_storages_are_counted_once():
    x = torch.ones(4, requires_grad=True)
    kept = train.SavedBytes(torch.nn.Identity(), torch.empty(0))
    y = kept.during(lambda: x.exp())  # saves its result
    z = kept.during(lambda: y * y)  # saves it twice again
    assert kept.total == 16
    del z


def test_table(dataset, runs):
    text = report.table(dataset, runs)
    assert re.search(r"test accuracy +all classes +rare \(1 3 5 7 9\) +rare among draws", text)
    for run in runs:
        assert re.search(rf"{run.name} +{run.accuracy[-1]:.1%} +{run.rare_accuracy[-1]:.1%} +\d+\.\d%", text)
    assert re.search(r"time a step \(median\), ms +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d", text)
    assert re.search(r"saved for backward, bytes +[\d,]+ +[\d,]+ +0\.\d\d", text)
    assert re.search(r"by sign +[\d,]+ +[\d,]+ +0\.\d\d", text)
    assert "native and reference: 0 apart" in text


def idx(tensor):
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.dim()]) + sizes + bytes(tensor.flatten().tolist())


@pytest.fixture
def mnist_folder(tmp_path):
    """Ten gray levels stand for the ten digits."""
    for part, each in (("train", 30), ("t10k", 5)):
        labels = torch.arange(10).repeat(each)
        images = (labels * 25).view(-1, 1, 1).expand(-1, 4, 4)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    return tmp_path


def test_idx_files(mnist_folder):
    full = data.mnist(mnist_folder)
    assert full.train_images.shape == (300, 16)
    assert full.test_images.shape == (50, 16)
    torch.testing.assert_close(full.train_images[3], torch.full((16,), 75 / 127.5 - 1))
    assert full.train_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert torch.bincount(data.imbalance(full, seed=0).train_labels).tolist() == [30, 3] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "IDX file of unsigned bytes"),
        (b"", "IDX file of unsigned bytes"),
        (b"\0\0\x08\2\0\0\0\1", "IDX file of unsigned bytes"),
        (b"\0\0\x08\1\0\0\0\2\7", r"must hold 2 bytes for \[2\], got 1"),
    ],
)
def test_wrong_idx_files_are_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        data.read_idx(path)


def test_images_and_labels_must_match(mnist_folder):
    (mnist_folder / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(7, dtype=torch.uint8)))
    with pytest.raises(SystemExit, match=r"train-images must have .* got \(300, 4, 4\) and \(7,\)"):
        data.mnist(mnist_folder)


def test_missing_idx_file_is_named(tmp_path):
    with pytest.raises(SystemExit, match="train-images-idx3-ubyte or"):
        command.main(["demo", "--data", str(tmp_path)])


def test_command_line_writes_table_and_picture(mnist_folder, tmp_path, capsys):
    out = tmp_path / "new" / "curves.png"
    options = ["--out", str(out), "--epochs", "2", "--seed", "3", "--hidden", str(train.HIDDEN)]
    command.main(["demo", "--data", str(mnist_folder), *options])
    printed = capsys.readouterr()
    assert "165 images to train on, 15 of them of the rare classes" in printed.out
    assert "reference, weighted sampler" in printed.out
    assert re.search(r"64 hidden units, 2 epochs\n  file, bytes +[\d,]+ +[\d,]+ +[\d,]+ +0\.\d\d\n", printed.out)
    assert printed.out.count("hidden units, 2 epochs") == 1
    assert "100%" in printed.err  # the progress bar
    picture = out.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > 2 * height > 600


def test_the_demo_as_json(mnist_folder, tmp_path, capsys):
    out = tmp_path / "curves.png"
    options = ["--out", str(out), "--epochs", "2", "--hidden", str(train.HIDDEN), "--json"]
    command.main(["demo", "--data", str(mnist_folder), *options])
    printed = json.loads(capsys.readouterr().out)
    assert [run["name"].split(",")[0] for run in printed["runs"]] == ["native", "reference", "native"]
    assert all(len(run["accuracy"]) == len(run["loss"]) == 2 for run in printed["runs"])
    (net,) = printed["loaded_in_a_new_process"]
    assert net["hidden"] == train.HIDDEN
    assert net["accuracy"]["packed"] == net["accuracy"]["quantized"]
    assert printed["curves"] == str(out)


def test_missing_packages_are_named_with_the_command_that_mends_it(monkeypatch):
    find = demo.importlib.util.find_spec
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None if name in demo.PACKAGES else find(name))
    with pytest.raises(SystemExit, match=r"scikit-learn, matplotlib, tqdm not .*pip install 'ste_ops\[demo\]'"):
        command.main(["demo"])
    with pytest.raises(SystemExit, match=r": matplotlib, tqdm not installed"):
        command.main(["demo", "--data", "anywhere"])


def test_wrong_epochs_are_refused():
    with pytest.raises(SystemExit, match="--epochs must be at least 1, got 0"):
        command.main(["demo", "--epochs", "0"])


def test_info_and_module_entry():
    done = subprocess.run([sys.executable, "-m", "ste_ops", "info"], capture_output=True, text=True, check=True)
    assert re.search(r"^abi_target +2\.11$", done.stdout, re.MULTILINE)
