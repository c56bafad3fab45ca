"""Whether the host runs ahead of a device.

A GPU works through what it was asked for while the host goes on; the host waits where it looks at a number, to skip
work or to choose a path. The loops over chunks look at none there: what the processor skips is done, and what it asks
per chunk is asked once, at the end.
"""

from torch import Tensor

__all__ = ["asynchronous"]


def asynchronous(x: Tensor) -> bool:
    """Return whether the host would wait for the device of a tensor if it looked at a number of it."""
    return x.device.type != "cpu"
