"""The plain loop to compare with, as one would write it for `torchrun`: no cluster, controller, tracking or state.

`jobs.benchmark overhead` starts it under torchrun. Loader, inputs, model, optimizer and moving average are those of the
run beside it; the loop is written out.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from datasets.checks import check_data
from jobs.benchmark.flags import read_flags
from jobs.benchmark.overhead import Options, one_stage
from model.factory import build_model
from model.regularization import set_dropout, set_stochastic_depth
from pipeline.run.preflight import with_numbers_of_data
from pipeline.training.device import choose_algorithms
from pipeline.training.evaluation import autocast
from pipeline.training.inputs import StepInputs, stage_batches
from pipeline.training.moving_average import MovingAverage
from pipeline.training.optim import build_optimizer
from pipeline.training.task import build_task


def main() -> None:
    """Train the steps on every rank; rank 0 prints the seconds between the first counted step's end and the last's."""
    options = read_flags(Options, sys.argv[1:], __doc__)
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    config = one_stage(options, folder="")
    (stage,) = config.stages
    choose_algorithms(deterministic=config.trainer.deterministic)
    manifest, _ = check_data(config.data, batch_sizes=[], worker_counts=[])
    task = build_task(with_numbers_of_data(config.task, config.data, manifest), manifest.classes)
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes=task.num_outputs)
    model = model.to(device).to(memory_format=torch.channels_last)
    set_dropout(model, stage.dropout)
    if stage.stochastic_depth is not None:
        set_stochastic_depth(model, stage.stochastic_depth)
    optimizer, decay = build_optimizer(config.optimizer, model), config.optimizer.ema_decay
    average = MovingAverage(model, decay) if decay else None
    net = DistributedDataParallel(model, device_ids=[device] if cuda else None, gradient_as_bucket_view=True)
    stop = options.steps * stage.batch_size
    batches = stage_batches(config, stage, start=0, stop=stop, rank=rank, world_size=world_size)
    net.train()
    ends = []
    for batch in batches:
        images, targets = StepInputs(batch.to(device), stage, config, task, device).part(slice(None))
        with autocast(config.trainer, device):
            logits = net(images)
        task.loss(logits, targets)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(model)
        ends.append(time.time())
    if rank == 0:
        print(json.dumps({"seconds": ends[-1] - ends[options.warm_up]}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
