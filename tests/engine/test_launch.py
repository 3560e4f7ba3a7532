"""What a launch of several processes ends with, and which device each of them takes."""

import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from data.errors import InputError
from engine import dist, launch
from mobileinst.layers.freeze import FrozenBatchNorm2d


def test_norms_are_synchronised_on_cuda_unless_they_are_frozen(monkeypatch):
    def model():
        return nn.Sequential(nn.BatchNorm2d(3), FrozenBatchNorm2d(nn.BatchNorm2d(3)), nn.Flatten())

    def kinds(device):
        one = model()
        dist.convert_sync_batchnorm(one, torch.device(device))
        assert one.state_dict().keys() == model().state_dict().keys()
        return [type(each) for each in one]

    plain = [nn.BatchNorm2d, FrozenBatchNorm2d, nn.Flatten]
    assert kinds("cuda") == plain
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    assert kinds("cuda") == [nn.SyncBatchNorm, FrozenBatchNorm2d, nn.Flatten]
    assert kinds("cpu") == plain


def test_each_rank_has_its_own_gpu(monkeypatch):
    cpu, cuda, second = map(torch.device, ("cpu", "cuda", "cuda:1"))
    assert dist.device_of_rank(second) == second and dist.device_of_rank(cuda) == cuda
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert dist.device_of_rank(cpu) == cpu and dist.device_of_rank(cuda) == second
    for device in (second, torch.device("mps")):
        with pytest.raises(InputError, match=f"--device {device}: several processes"):
            dist.device_of_rank(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes were started and this machine has 1 GPUs"):
        dist.device_of_rank(cuda)


def failure(exitcode: int, timestamp: int = 5) -> SimpleNamespace:
    return SimpleNamespace(exitcode=exitcode, timestamp=timestamp, signal_name=lambda: "SIGKILL")


def test_the_first_failure_is_reported_and_not_its_consequences():
    failures = {0: failure(dist.EXIT_RANK_LOST, 4), 1: failure(-9), 2: failure(-15, 6)}
    code, said = launch.exit_status(failures)
    assert code == 137 and said.startswith("error: rank 1 was killed (SIGKILL")
    for code in (2, 3, 130, 143):
        assert launch.exit_status({0: failure(code)}) == (code, "")
    code, said = launch.exit_status({3: failure(1)})
    assert code == 1 and "rank 3 failed, see above" in said
    code, said = launch.exit_status({0: failure(dist.EXIT_RANK_LOST)})
    assert code == dist.EXIT_RANK_LOST and "on another machine" in said


def test_a_stopped_job_ends_with_the_code_of_the_signal(monkeypatch):
    def stopped(options):
        assert (options.nproc_per_node, options.training_script) == ("2", "engine.train")
        raise SignalException("asked", signal.SIGTERM)

    monkeypatch.setattr(launch.torchrun, "run", stopped)
    argv = "--standalone --nproc-per-node 2 -m engine.train --resume".split()
    assert launch.main(argv) == 143


@pytest.mark.parametrize("module, resumed", [("engine.train", True), ("engine.evaluate", False)])
def test_a_failed_training_can_be_resumed(monkeypatch, capsys, module, resumed):
    error = ChildFailedError.__new__(ChildFailedError)  # its own start wants more of a failure
    error.failures = {0: failure(1)}

    def failed(options):
        raise error

    monkeypatch.setattr(launch.torchrun, "run", failed)
    assert launch.main(["--standalone", "-m", module]) == 1
    said = capsys.readouterr().err
    assert "rank 0 failed" in said and ("--resume" in said) == resumed
