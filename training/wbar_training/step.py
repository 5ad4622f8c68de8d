"""One optimizer step: the batch in parts, the loss's gradient, the pull, the clip, the update.

for every part:  L_part ← forward;  backward of scale·L_part       (scale: 1 but in float16)
g ← Σ parts / scale;  g ← g + 2λ(w − w̄);  g ← g·min(1, θ/‖g‖);  are they finite?  w ← optimizer(g)
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from wbar_averaging import add_folded_pull_gradient, add_pull_gradient, can_fold_pull, distance, fold_pull
from wbar_training.distributed.ranks import Ranks
from wbar_training.draws import key, seed_torch
from wbar_training.graphed import GraphedBackward, GraphedUpdate
from wbar_training.losses import Loss, Target
from wbar_training.networks.teachers import Teachers
from wbar_training.optim import SCALE, make_optimizer
from wbar_training.plan import Plan


@dataclass(frozen=True)
class StepResult:
    """The result of one step, on the device.

    loss: of the batch, a scalar, in nats.
    correct: right answers of the batch, a scalar.
    norm: of the training loss's gradient, before pull and clip; where it was asked for.
    distance: ‖w − w̄‖ of the w that the gradient belongs to; where it was asked for.
    """

    loss: Tensor
    correct: Tensor
    norm: Tensor | None = None
    distance: Tensor | None = None


class Stepper:
    """Moves one network. forward: the module called on the inputs, `model` itself or a wrapper of it."""

    def __init__(
        self, model: nn.Module, plan: Plan, loss: Loss, device: torch.device, teachers: Teachers | None
    ) -> None:
        self.plan, self.loss, self.device, self.teachers = plan, loss, device, teachers
        self.model = model
        self.ranks = Ranks.here()
        self.forward = self._wrapped(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.recipe.precision == "float16")
        # With several ranks, gradients of others come in between.
        graphs = device.type == "cuda" and self.ranks.size == 1 and loss.graphable
        self._graphed = GraphedBackward(self._backward, self.parameters) if graphs else None
        self._first_scale = self.scaler.state_dict()
        self.renew()

    def _wrapped(self, model: nn.Module) -> nn.Module:
        """Return the module called in training: the network, joined with the other ranks', compiled where asked for."""
        if self.ranks.size > 1:
            model = DistributedDataParallel(
                model, device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None
            )
        if not self.plan.recipe.compile:
            return model
        # On a GPU inductor would time kernels that sum in other orders, and take the fastest: the clock must decide no bit.
        return torch.compile(model, options={"deterministic": True})  # type: ignore[return-value]

    def renew(self) -> None:
        """Make a fresh optimizer, and let float16 be scaled, as at the start of the job."""
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self._first_scale)  # in place: a captured graph reads the scale there
            self.scaler._per_optimizer_states.clear()  # of a step that was not ended
        self.optimizer = make_optimizer(self.model, self.plan)
        # Folding gives the same number with one pass less over the weights; not where clipping must see the whole gradient.
        self._folds = self.plan.grad_clip_norm is None and can_fold_pull(self.optimizer)
        self._folded = 0.0
        # On the device, for kernels that were captured; those of a list of tensors take numbers only.
        fused = self.device.type == "cuda" and all(group.get("fused") for group in self.optimizer.param_groups)
        groups = self.optimizer.param_groups
        self._rates = [torch.zeros((), device=self.device) for _ in groups] if fused else None
        self._rate_held = 0.0
        self._graphed_update = GraphedUpdate(self.optimizer)

    def take(
        self,
        inputs: Tensor,
        target: Target,
        step: int,
        lr: float,
        pull: float,
        anchor: Sequence[Tensor],
        logged: bool,
        check: Callable[[StepResult], None] | None = None,
    ) -> StepResult:
        """Take one step on one batch.

        inputs: (B, C, H, W), normalized.
        step: its number, which the network's own random draws depend on.
        lr: the learning rate.
        pull: the strength λ of the pull.
        anchor: w̄ as the pull sees it, one tensor per parameter.
        logged: whether the norms are computed.
        check: called with the result before the weights are changed; they are not where it raises.
        """
        sums = torch.zeros(2, device=self.device)
        images = len(inputs)
        target = self.loss.normed(target)
        # By the whole batch, so that every rank makes the same number of forward passes: SyncBatchNorm waits for the others
        # in each. A part of one image has no variance.
        count = max(1, min(self.plan.recipe.accumulate, images // self.ranks.size // 2))
        share = self.ranks.share(images)
        inputs, target = inputs[share], target.part(share)
        parts = [slice(len(inputs) * n // count, len(inputs) * (n + 1) // count) for n in range(count)]
        graphed = self._graphed if count == 1 else None
        if graphed is None:
            self.optimizer.zero_grad(set_to_none=True)
        for index, part in enumerate(parts):
            place = self.ranks.rank * len(parts) + index
            seed = key(self.plan.seed, f"forward/{place}" if place else "forward", step)
            if graphed is not None:
                sums += graphed(seed, inputs, target, images)
                continue
            seed_torch(seed, self.device)
            with self._joined(index + 1 == len(parts)):
                sums += self._backward(inputs[part], target.part(part), images)
        loss, right = self.ranks.summed(sums)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]) if logged else None
        to_mean = distance(self.parameters, anchor) if logged else None
        result = StepResult(loss, right, norm, to_mean)
        if check is not None:
            check(result)
        self._set_rate(lr)
        self._fold(pull)

        def update() -> None:
            self._pull(anchor, pull)
            if self.plan.grad_clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.plan.grad_clip_norm)
            self.scaler.step(self.optimizer)

        # The scaler keeps a record of its calls beside the kernels.
        replayed = graphed is not None and graphed.replayed
        if replayed and self._rates is not None and not self.scaler.is_enabled():
            self._graphed_update(update, (pull, id(anchor)))
        else:
            update()
        self.scaler.update()
        return result

    def _joined(self, last: bool) -> AbstractContextManager[None]:
        """Average the ranks' gradients once, after the last part."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def _backward(self, inputs: Tensor, target: Target, images: int) -> Tensor:
        """Return the part's share of loss and right answers, (2,); its gradient is added to the parameters'."""
        if self.loss.penalty:
            inputs = inputs.detach().requires_grad_(True)
        if self.teachers is not None:
            target = self.teachers.taught(inputs.detach(), target)
        # The fused attention kernels have no second derivative.
        twice = sdpa_kernel(SDPBackend.MATH) if self.loss.penalty else nullcontext()
        with twice, torch.autocast(self.device.type, dtype=self.plan.autocast, enabled=self.plan.autocast is not None):
            outputs = self.loss.forward(self.forward, inputs, target)
        if self.loss.penalty:
            loss = self.loss.with_penalty(outputs, target, images, inputs)
        else:
            loss = self.loss(outputs, target, images)
        # The ranks' gradients are averaged, and their losses are shares of one: hence times their number.
        self.scaler.scale(loss * self.ranks.size).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            right = self.loss.correct(outputs, target)
        return torch.stack([loss.detach().float(), right.float()])

    def _set_rate(self, lr: float) -> None:
        groups = self.optimizer.param_groups
        if self._rates is None:
            for group in groups:
                group["lr"] = lr * group.get(SCALE, 1.0)
            return
        if lr != self._rate_held:
            for rate, group in zip(self._rates, groups, strict=True):
                rate.fill_(lr * group.get(SCALE, 1.0))
            self._rate_held = lr
        for rate, group in zip(self._rates, groups, strict=True):
            group["lr"] = rate

    def _fold(self, strength: float) -> None:
        if self._folds and strength != self._folded:
            fold_pull(self.optimizer, strength)
            self._folded = strength

    def _pull(self, anchor: Sequence[Tensor], strength: float) -> None:
        if not strength:
            return
        (add_folded_pull_gradient if self._folds else add_pull_gradient)(self.parameters, anchor, strength)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "folded": self._folded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._folded = state["folded"]
