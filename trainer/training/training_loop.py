"""The training loop: `TrainingLoop.steps` yields a report after each step; the caller logs, saves and samples."""

import functools
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ..common.errors import NonFinite, Stopped
from ..config.train_config import TrainConfig
from ..data import sampler
from ..data.folders import Folders, Sample
from ..data.images import PLAIN
from ..data.sampler import TrainingSample
from ..memory import devices
from ..memory.memory_plan import MemoryPlan
from ..objective import pu_loss, step_gradient
from ..objective.temperature import LossScale, min_snr_weight
from ..reporting.run_context import RunContext
from .denoiser import Denoiser, calibrate, normal_growth, probe
from .feeding import FedStep, Feeder, MicroBatch
from .learner import Learner
from .optimizers import lr_factor

PROBE_SAMPLES = 20
UNLABELED_PROBES = 3  # times as many: a few of them are sensitive, and how many is left to chance


@dataclass(frozen=True)
class StepReport:
    """One finished step. Risks in units of l (error over temperature); see pu_loss."""

    step: int  # finished steps, from 1
    of: int
    loss: float
    risk_unlabeled: float
    risk_sensitive: float
    normal_risk: float
    ratio: float  # sensitive / unlabeled loss: above 1 and rising is unlearning
    slope: float
    sign_flips: int  # steps so far whose sensitive samples ran twice
    lr: float
    grad_norm: float
    s_per_step: float
    peak_mib: float


@dataclass
class Progress:
    """The position in the run: what changes from step to step and must survive a resume."""

    step: int = 0
    sign: int = 1
    sign_flips: int = 0
    negative: int = 0  # steps in which the normal risk was negative


class TrainingLoop:
    """Takes the training steps: network, batches, loss scale, and the position in the run."""

    def __init__(
        self,
        config: TrainConfig,
        folders: Folders,
        learner: Learner,
        denoiser: Denoiser,
        plan: MemoryPlan,
        context: RunContext,
    ) -> None:
        self.config, self.folders, self.context = config, folders, context
        self.learner, self.denoiser, self.micro_batch = learner, denoiser, plan.micro_batch
        self.batches = sampler.batches(config, folders)
        sizes = config.batch_unlabeled, config.batch_sensitive
        self.weights = pu_loss.Weights(config.objective, float(config.prior), *sizes, self._sensitive_weight())
        self.progress = Progress()
        self._scale: LossScale | None = None
        self.first_probe: dict[str, list[float]] = {}
        self.last: StepReport | None = None
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # timesteps and errors of this step's unlabeled

    def _sensitive_weight(self) -> float:
        config, prior = self.config, float(self.config.prior)  # "auto" is resolved by now
        if config.sensitive_weight != "auto":
            return config.sensitive_weight
        # the rule rests on the base model's error; without that, it is the paper's weight
        has_base_error = config.temperature_mode == "per-timestep" and not self.learner.network.is_from_scratch
        return pu_loss.sensitive_weight(prior, config.temperature) if has_base_error else prior

    def prepare(self) -> None:
        """Choose the micro-batch, and measure the base model once: calibration and the probes' starting point."""
        if self.config.micro_batch == "auto" and self.context.device.type == "cuda":
            self.micro_batch = devices.largest_that_fits(self.micro_batch, self._attempt)
        if self._scale is not None:
            return
        with self.learner.network.disabled():
            self._scale = self._measure_scale()
            self.first_probe = self._probes()

    @property
    def scale(self) -> LossScale:
        """The loss scale; `prepare` measures it, `restore` reads it."""
        assert self._scale is not None, "prepare or restore first"
        return self._scale

    def _measure_scale(self) -> LossScale:
        config = self.config
        if config.objective == "unsupervised":
            return LossScale("plain", 1.0)
        if config.temperature_mode == "fixed":
            return LossScale("fixed", config.temperature)
        base_error = calibrate(
            self.denoiser,
            self.folders.unlabeled,
            samples_per_bin=config.calibration_samples,
            micro_batch=self.micro_batch,
        )
        return LossScale(config.temperature_mode, config.temperature, base_error, self.denoiser.schedule.timesteps)

    def _attempt(self, n: int) -> None:
        def size(sample: Sample) -> int:
            return self.denoiser.encoded.latents(sample.path, PLAIN).numel()

        largest = max((*self.folders.unlabeled, *self.folders.sensitive), key=size)
        draws = [TrainingSample(0, largest, self.folders.unlabeled[0].own_caption)] * n
        errors, _, _ = self.denoiser.errors(draws, 0)
        errors.mean().backward()
        for parameter in self.learner.parameters:
            parameter.grad = None

    def _probes(self) -> dict[str, list[float]]:
        """Measure losses on unlabeled images, and on sensitive ones: those trained on, and those held out."""
        folders, n = self.folders, PROBE_SAMPLES
        order = np.random.default_rng(self.config.seed).permutation(len(folders.unlabeled))  # files may lie sorted
        mixed, caption = [folders.unlabeled[i] for i in order], folders.unlabeled[0].caption or ""
        kinds = {
            "unlabeled": (mixed, None, UNLABELED_PROBES * n),
            "trained": (folders.sensitive, caption, n),
            "held_out": (folders.held_out, caption, n),
        }
        return {
            kind: probe(self.denoiser, self.scale, samples, caption, n=n, micro_batch=self.micro_batch)
            for kind, (samples, caption, n) in kinds.items()
            if samples
        }

    def loss_growth(self) -> dict[str, float]:
        """Measure by what factor each loss has grown: "normal" (estimated), "trained", "held_out"."""
        pairs = {k: (self.first_probe[k], now) for k, now in self._probes().items() if k in self.first_probe}
        found = {k: fmean(now) / fmean(before) for k, (before, now) in pairs.items() if k != "unlabeled"}
        before, now = pairs.get("unlabeled", ([], []))
        if before and len(before) == len(now):  # another version may have measured another number
            found["normal"] = normal_growth(before, now, float(self.config.prior))
        return found

    def steps(self) -> Iterator[StepReport]:
        """Train to the last step, yielding after each one.

        Raises: NonFinite before a step that would spoil the weights. Stopped from inside an unfinished step, which
            then has changed nothing.
        """
        feeder = Feeder(self._feed, self.config.steps)
        try:
            yield from self._steps(feeder)
        finally:
            feeder.close()

    def _steps(self, feeder: Feeder) -> Iterator[StepReport]:
        while self.progress.step < self.config.steps:
            self._stop_together()
            started, self._seen = time.perf_counter(), []
            step = self.progress.step
            outcome = self._accumulate(feeder.get(step))
            lr = self.config.lr * lr_factor(step, self.config)
            grad_norm = self.learner.clip()
            self._check_finite(step, outcome.risks, grad_norm)
            if not self.learner.step(lr):
                continue
            flips = self.progress.sign_flips + (outcome.sign != self.progress.sign)
            negative = self.progress.negative + (outcome.risks.normal < 0)
            self.progress = Progress(step + 1, outcome.sign, flips, negative)
            if self.learner.network.is_from_scratch:
                self._scale = self.scale.after(*map(torch.cat, zip(*self._seen, strict=True)))
            self.last = self._report(outcome.risks, lr, grad_norm, time.perf_counter() - started)
            yield self.last

    def _accumulate(self, fed: FedStep) -> step_gradient.Outcome:
        return step_gradient.accumulate(
            functools.partial(self._losses, fed, self.scale.to(self.context.device)),
            fed.unlabeled,
            fed.sensitive,
            self.learner.parameters,
            self.weights,
            assumed_sign=self.progress.sign,
            micro_batch=self.micro_batch,
            shape_of=self.denoiser.shape_of,
            backward=self.learner.accelerator.backward,
            ranks=self.context.ranks,
        )

    def _feed(self, step: int) -> FedStep:
        """Prepare a step's micro-batches: in the feeder's thread, so it changes nothing here."""
        unlabeled, sensitive = self._samples(step)
        draws, shape_of = [*unlabeled, *sensitive], self.denoiser.shape_of
        schedule, places = self.denoiser.schedule, {}
        for part in step_gradient.micro_batches(draws, self.micro_batch, shape_of, self.context.ranks):
            inputs = self.denoiser.inputs([draws[i] for i in part], step)
            factor = min_snr_weight(schedule.snr(inputs.t), self.config.min_snr_gamma, schedule.prediction_type)
            fed = MicroBatch(inputs, self.denoiser.pinned(factor))
            places.update({draws[i].position: (fed, k) for k, i in enumerate(part)})
        return FedStep(unlabeled, sensitive, places)

    def _samples(self, step: int) -> tuple[list[TrainingSample], list[TrainingSample]]:
        is_plain = self.config.objective == "unsupervised"
        return self.batches.unlabeled(step), [] if is_plain else self.batches.sensitive(step)

    def _stop_together(self) -> None:
        """Stop all processes between two steps as soon as one was asked to stop.

        Alone, the denoiser asks before each micro-batch; here that would leave the others waiting for a sum.
        """
        if self.context.ranks.world == 1:
            return
        try:
            self.context.check()
            asked = False
        except Stopped:
            asked = True
        if self.context.ranks.any(asked, self.context.device):
            raise Stopped

    def _losses(
        self, fed: FedStep, scale: LossScale, draws: Sequence[TrainingSample]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        part = fed.inputs(draws)
        errors, t, elements = self.denoiser.errors_of(part.inputs)
        if self.learner.network.is_from_scratch:
            unlabeled = sum(d.position < self.config.batch_unlabeled for d in draws)  # they come first
            self._seen.append((t[:unlabeled], (errors / elements).detach()[:unlabeled]))
        return scale.losses(errors, t, elements), self.denoiser.on_device(part.importance)

    def _check_finite(self, step: int, risks: pu_loss.Risks, grad_norm: float) -> None:
        """Raise NonFinite before the optimizer step. An fp16 overflow counts only if the scaler cannot fix it."""
        advice = "The step was not taken. Try a lower --lr or --temperature, or --precision fp32."
        if not math.isfinite(risks.objective):
            culprit = self._find_culprit(step) or f"loss {risks.objective}"
            raise NonFinite(f"step {step + 1}: {culprit}. {advice}")
        if not math.isfinite(grad_norm) and not self.learner.can_rescale:
            raise NonFinite(f"step {step + 1}: gradient norm {grad_norm}. {advice}")

    @torch.no_grad()
    def _find_culprit(self, step: int) -> str | None:
        """Find the sample whose error is not finite, one by one: only called after a non-finite loss."""
        for draw in itertools.chain(*self._samples(step)):
            errors, t, _ = self.denoiser.errors([draw], step)
            if not errors.isfinite().all():
                return f"{draw.sample.path.name} at timestep {t.item()}: error {errors.item()}"
        return None

    def _report(self, risks: pu_loss.Risks, lr: float, grad_norm: float, s_per_step: float) -> StepReport:
        return StepReport(
            step=self.progress.step,
            of=self.config.steps,
            loss=risks.objective,
            risk_unlabeled=risks.unlabeled,
            risk_sensitive=risks.sensitive,
            normal_risk=risks.normal,
            ratio=risks.loss_sensitive / risks.unlabeled,
            slope=risks.slope,
            sign_flips=self.progress.sign_flips,
            lr=lr,
            grad_norm=grad_norm,
            s_per_step=s_per_step,
            peak_mib=devices.peak_mib(self.context.device),
        )

    def state(self) -> dict[str, Any]:
        """Return a nested dict of tensors and JSON values that `restore` takes back."""
        return {
            "progress": asdict(self.progress),
            **self.learner.state(),
            "first_probe": self.first_probe,
            "base_error": self.scale.base_error,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.progress = Progress(**state["progress"])
        self.learner.restore(state)
        # a version before saved one mean for each kind
        self.first_probe = {
            kind: losses if isinstance(losses, list) else [losses] for kind, losses in state["first_probe"].items()
        }
        mode = "plain" if self.config.objective == "unsupervised" else self.config.temperature_mode
        self._scale = LossScale(mode, self.config.temperature, state["base_error"], self.denoiser.schedule.timesteps)
