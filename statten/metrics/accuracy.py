"""Loss and top-k accuracy as sums, which are added over ranks before any division.

Sums stay on the device until they are read, so that measuring never makes a GPU wait.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(sums: Tensor) -> Tensor:
    """The sum of a tensor of counts over all ranks; collective where there are several."""
    if is_distributed():
        dist.all_reduce(sums)
    return sums


class Accuracy:
    """Running loss, top-1 and top-5 over samples: each sample counts once, whatever the batches and ranks."""

    FIELDS = ("loss", "top1", "top5", "samples")

    def __init__(self, device: torch.device | str, sums: list[float] | None = None):
        # float64 holds counts exactly to 2^53. MPS has none, and is not a target.
        self.sums = torch.tensor(sums or [0.0] * len(self.FIELDS), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a batch: mean loss [], logits [B, classes] or [T, B, classes], labels [B]."""
        if logits.ndim == 3:
            logits = logits.mean(0)
        batch, k = target.numel(), min(5, logits.shape[-1])
        # Ties count against us: a label is in the top k when fewer than k other classes score at least as much,
        # so a dead network that returns equal logits is not right by luck of the sort.
        own = logits.gather(1, target[:, None])
        rank = (logits >= own).sum(1) - 1
        rank = torch.where(logits.isfinite().all(1), rank, logits.shape[-1])
        samples = torch.full_like(loss, batch)  # made on the device: a copy from here would make the GPU wait
        counts = [loss.detach().double() * batch, (rank < 1).sum(), (rank < k).sum(), samples]
        self.sums += torch.stack([c.to(self.sums) for c in counts])

    def summed(self) -> Tensor:
        """The sums over all ranks; collective where there are several."""
        return sum_over_ranks(self.sums.clone())

    def reduced(self) -> dict[str, float]:
        """Mean loss, top-1 and top-5 in percent, and the number of samples, over all ranks."""
        loss, top1, top5, samples = self.summed().tolist()
        n = max(samples, 1.0)
        return {"loss": loss / n, "top1": 100 * top1 / n, "top5": 100 * top5 / n, "samples": samples}
