"""What trainings and evaluations import sooner or later, here for the server that is forked."""
# ruff: noqa: E402, F401

import voco_llama  # so that torchvision can be imported beside a torch for CPUs

# isort: split
import deepspeed
import deepspeed.module_inject
import functorch.compile
import open_clip
import torch._inductor.kernel
import torch.distributed.fsdp
import torch.distributed.tensor
import wandb
from transformers.models.llama import modeling_llama

from voco_llama.composition import compose
from voco_llama.training import run
from voco_llama.training.trainer import VoCoTrainer

compose(["experiment=toy/voco_1", "trainer=zero3"])  # Hydra finds its plugins, and its parser warms up

from voco_llama.evaluation import lmms_adapter  # last: lmms-eval may not be installed
