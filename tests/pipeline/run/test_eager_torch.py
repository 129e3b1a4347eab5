from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TRAINED = """
import sys
import torch
from pipeline.run.eager_torch import defer_compiler
defer_compiler()
import torchvision
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

torch.manual_seed(0)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/group", rank=0, world_size=1)
model = nn.Linear(4, 2)
net = nn.parallel.DistributedDataParallel(model)
for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop):
    optimizer = kind(model.parameters(), lr=0.1)
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
AveragedModel(model).update_parameters(model)
print(sorted(name for name in sys.modules if name.startswith("torch._dynamo")))
dist.destroy_process_group()
"""
COMPILED = """
import torch._dynamo.eval_frame
from torch._dynamo import config
compiled = torch.compile(model, dynamic=False, backend="eager")
assert torch.equal(compiled(torch.ones(3, 4)), model(torch.ones(3, 4)))
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
assert torchvision.ops.roi_align.__globals__["is_compile_supported"]("meta") is False
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo is sys.modules["torch._dynamo"]
assert type(torch._dynamo) is type(torch._dynamo.utils) is type(sys)
assert torch._dynamo.disable.__module__ == "torch._dynamo.decorators"
"""


@pytest.fixture
def train(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", TRAINED, str(tmp_path)]


def test_training_without_compilation_imports_no_compiler(train: list[str]) -> None:
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch._dynamo', 'torch._dynamo.utils']"  # the stand-ins


def test_the_compiler_is_there_when_it_is_used_all_the_same(train: list[str]) -> None:
    train[2] += COMPILED
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
