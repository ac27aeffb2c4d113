"""What the U-Net is shown in a step, prepared one step ahead in a thread while the device computes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from ..data.sampler import TrainingSample
from ..memory import devices
from .denoiser import Inputs


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one shape, unlabeled ones first, as the U-Net is shown them, and their importance [n]."""

    inputs: Inputs
    importance: Tensor


@dataclass(frozen=True)
class FedStep:
    """The samples of one step, and this process's micro-batches of them."""

    unlabeled: list[TrainingSample]
    sensitive: list[TrainingSample]
    places: dict[int, tuple[MicroBatch, int]]  # position of a sample in the step -> where it was put

    def inputs(self, draws: Sequence[TrainingSample]) -> MicroBatch:
        """Return a micro-batch, or the end of one (its sensitive samples)."""
        found, first = self.places[draws[0].position]
        part = slice(first, first + len(draws))
        return MicroBatch(found.inputs.part(part), found.importance[part])


class Feeder:
    """Keeps the step that is asked for and the one after it, which a thread makes meanwhile."""

    def __init__(self, make: Callable[[int], FedStep], end: int) -> None:
        """Args: make: a pure function of the step. end: the first step that is never asked for."""
        self._make, self._end = make, end
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeder", initializer=devices.flush_denormals)
        self._steps: dict[int, Future[FedStep]] = {}

    def get(self, step: int) -> FedStep:
        """Return a step. Raises: what making it raised."""
        wanted = range(step, min(step + 2, self._end))
        self._steps = {k: self._steps.get(k) or self._thread.submit(self._make, k) for k in wanted}
        return self._steps[step].result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
