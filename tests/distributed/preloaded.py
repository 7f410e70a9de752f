"""What the trainings and evaluations of these tests import sooner or later, here for the server that is forked."""
# ruff: noqa: F401

import deepspeed
import deepspeed.module_inject
import functorch.compile
import open_clip
import torch._inductor.kernel
import torch.distributed.fsdp
import torch.distributed.tensor
import wandb
from transformers.models.llama import modeling_llama

from tests.distributed import worker
from voco_llama.composition import compose
from voco_llama.evaluation import lmms_adapter

compose(["experiment=toy/voco_1", "trainer=zero3"])  # Hydra finds its plugins, and its parser warms up
