"""The teachers of a distillation: one network, or the members of a former job's ensemble, their outputs averaged.

p_T = mean over the members of softmax(z / T), or of σ(z / T) where an image has several labels
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wbar.recipe import Distillation
from wbar.spec import StoredWeights
from wbar_training.losses import Target
from wbar_training.networks import architectures
from wbar_training.networks.tensors import read_tensors
from wbar_training.plan import Plan
from wbar_training.workspace import Workspace


class Teachers:
    """The networks of the teachers, in eval mode, without gradients, in the precision of the training.

    softened: the probabilities of logits that are divided by the temperature.
    """

    def __init__(
        self,
        members: Sequence[StoredWeights],
        workspace: Workspace,
        plan: Plan,
        device: torch.device,
        softened: Callable[[Tensor], Tensor],
    ) -> None:
        self._softened = softened
        assert isinstance(plan.recipe.distillation, Distillation)
        self._temperature, self._autocast = plan.recipe.distillation.temperature, plan.autocast
        self._models = []
        for member in members:
            uploaded = read_tensors(workspace.input(member.blob))
            tensors = {name.removeprefix(member.prefix): tensor for name, tensor in uploaded.items()}
            model, _ = architectures.load(member.network, tensors)
            self._models.append(model.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last))

    @torch.no_grad()
    def taught(self, inputs: Tensor, target: Target) -> Target:
        """Return the target with the mean of the members' softened probabilities, (B, outputs) float32.

        inputs: (B, C, H, W), the same as the student's.
        """
        with torch.autocast(inputs.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = [model(inputs).float() / self._temperature for model in self._models]
        return replace(target, soft=torch.stack([self._softened(z) for z in outputs]).mean(dim=0))
