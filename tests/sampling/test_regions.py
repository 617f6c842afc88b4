"""How many parallel regions a call opens, torch's own included: a library stands before OpenMP and counts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ste_ops

HERE = Path(__file__).parent

LEARNED = "surrogate.Sigmoid(torch.tensor(1.0, requires_grad=True))"
# Each call with the regions that it opens at two threads: none for less than 2 ms of work, one for all rows.
CALLS = {
    "AliasTable(torch.rand(1000))": 0,
    "AliasTable(torch.rand(50000))": 0,
    "AliasTable(torch.rand(512, 1000))": 1,
    "AliasTable(torch.rand(64, 50257))": 1,
    "AliasTable(torch.rand(1000)).sample(10000)": 0,
    "AliasTable(torch.rand(1000)).sample(2**20)": 1,
    "multinomial(torch.rand(1024, 10), 5, True)": 0,
    "multinomial(torch.rand(1024, 10), 5, False)": 0,
    "multinomial(torch.rand(64, 50257), 64, False)": 1,
    "multinomial(torch.rand(64, 50257), 64, True)": 1,
    "multinomial(torch.rand(100000), 10, True)": 0,
    "multinomial(torch.rand(100000), 10, False)": 0,
    "systematic_resample(torch.rand(100000), 100000)": 0,
    "stratified_resample(torch.rand(100000), 100000)": 0,
    "residual_resample(torch.rand(50000), 50000)": 0,
    "systematic_resample(torch.rand(64, 50257), 50257)": 1,
    "SumTree(torch.rand(100000))": 0,
    "SumTree(torch.rand(1000)).sample(1000)": 0,
    "bernoulli_ste(torch.rand(10000))": 0,
    "bernoulli_ste(torch.rand(10**5))": 0,
    "bernoulli_ste(torch.rand(2**21))": 1,
    "stochastic_round(torch.rand(10**5))": 0,
    "stochastic_round(torch.rand(2**21))": 1,
    f"sign(torch.rand(2 * 10**5, requires_grad=True), ste_ops.{LEARNED}).backward(torch.rand(2 * 10**5))": 0,
    "categorical_ste(torch.rand(1024, 10))": 0,
    "subset_ste(torch.rand(1024, 10), 3)": 0,
    # Element-wise loops and sums open one from a fifth of a millisecond a thread on.
    "sign(torch.rand(2**17))": 0,
    "lsq(torch.rand(2**17), torch.tensor(0.1), -8, 7)": 0,
    "xnor_weight(torch.rand(64, 2048))": 0,
    "bitnet_weight(torch.rand(64, 2048))": 0,
    "get_total_norm([torch.rand(2**13)] * 16)": 0,
    "sign(torch.rand(2**21))": 1,
}


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """The regions of each call, counted in a process of its own."""
    library = tmp_path_factory.mktemp("regions") / "regions.so"
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", HERE / "regions.cpp", "-o", library, "-ldl"], check=True)
    script = f"""
import ctypes, json, torch, ste_ops
take = ctypes.CDLL({str(library)!r}).take_regions
take.restype = ctypes.c_int64
torch.set_num_threads(2)
counted = {{}}
for call in {list(CALLS)!r}:
    take()
    eval("ste_ops." + call)
    counted[call] = take()
print(json.dumps(counted))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(ste_ops.__file__).parent.parent,
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
@pytest.mark.parametrize("call", CALLS)
def test_a_call_opens_the_regions_that_its_work_is_worth(regions, call):
    assert regions[call] == CALLS[call]
