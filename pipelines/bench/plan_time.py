"""How long an epoch takes whose shards come over a network: a discrete model, without randomness.

A node downloads the shards it needs in the order in which it needs them, one at a time, and at most
`ahead` beyond those that are asked for. The shards of a step are asked for `early` steps before it,
when workers begin its batch; without workers, when the step before it has ended. A step begins when
the one before has ended and every node has all that it needs for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Link:
    """A node's way to the shards.

    shard_seconds: for a shard; outage_begin, outage_seconds: when and for how long nothing comes.
    """

    shard_seconds: float
    outage_begin: float = 0.0
    outage_seconds: float = 0.0

    def end(self, begin: float) -> float:
        """Return when a download that may begin then ends."""
        over = self.outage_begin + self.outage_seconds
        if self.outage_begin <= begin < over:
            begin = over
        end = begin + self.shard_seconds
        if begin < self.outage_begin < end:
            end += self.outage_seconds
        return end


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """When the first step began and the last one ended, in seconds from the start."""

    begin: float
    end: float


def run_epoch(
    needs: Sequence[NDArray[np.int64]],
    links: Sequence[Link],
    *,
    steps: int,
    step_seconds: float,
    ahead: int,
    early: int,
) -> Epoch:
    """Return how an epoch goes.

    Args:
        needs: of each node the steps in which it needs its shards first, rising.
        links: of each node.
        steps: of the epoch, 1 or more.
        step_seconds: of the training itself.
        ahead: shards that are downloaded before they are asked for, at most; 1 or more.
        early: steps that batches are begun before their turn.
    """
    begins: list[float] = []
    lists = [need.tolist() for need in needs]
    fetched = [0] * len(lists)
    there = [0.0] * len(lists)

    def asked(step: int) -> float:
        """Return when the shards of a step are asked for; steps before it have begun."""
        if step < max(early, 1):
            return 0.0
        return begins[step - early] if early else begins[step - 1] + step_seconds

    for step in range(steps):
        for node, need in enumerate(lists):
            while fetched[node] < len(need) and need[fetched[node]] <= step:
                k = fetched[node]
                begin = there[node]
                if k >= ahead:
                    begin = max(begin, asked(need[k - ahead]))
                there[node] = links[node].end(begin)
                fetched[node] += 1
        trained = begins[-1] + step_seconds if begins else 0.0
        # A node's shards come in order, so the last one is there when all are.
        begins.append(max(trained, *there))
    return Epoch(begin=begins[0], end=begins[-1] + step_seconds)
