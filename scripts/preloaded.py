"""What trainings and evaluations import sooner or later, here for the server that is forked."""
# ruff: noqa: F401

import deepspeed
import deepspeed.module_inject
import functorch.compile
import open_clip
import torch._inductor.kernel
import wandb
from transformers.models.llama import modeling_llama

from voco_llama.composition import compose

compose(["experiment=toy/voco_1", "trainer=zero3"])  # Hydra finds its plugins, and its parser warms up

from voco_llama.evaluation import lmms_adapter  # noqa: E402, last: it may not be installed
