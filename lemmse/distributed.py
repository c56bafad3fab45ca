"""The same reductions on many machines, with Dask: shards of a set of images, and a tree of merges.

Every shard, a part of the images that fits into one worker, is reduced to a ``PartialPosterior``: some numbers per
query, however many images there are. Neighbours merge (S12.6) until one is left, so that images count on from shard to
shard and the answer is that of one machine. What is lost with a worker is computed again by another.
"""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce as fold
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import torch
from dask.distributed import Client, Future, KilledWorker, LocalCluster, as_completed
from dask.system import CPU_COUNT
from jaxtyping import Float
from torch import Tensor

from ._checks import checked_reduction, checked_sigma, positive_integer
from ._progress import progress, silence
from .estimators import Estimator
from .image_sets import ImageSet
from .reductions import Moments, PartialPosterior, Posterior, Reduction, Sources

__all__ = ["partial_posterior", "reduce"]

Shard = Tensor | np.ndarray | ImageSet | str | os.PathLike
"""Images (k, c, h, w), or the ``.npy`` or ``.safetensors`` file that holds them."""

FAN_IN = 8
"""Partial posteriors that a task merges: they meet in one worker's memory."""

FILES = (".npy", ".safetensors")


def reduce(
    estimator_of: Callable[[Tensor], Estimator],
    shards: Sequence[Shard] | Callable[[int], Shard],
    y: Float[Tensor, "b ..."],
    *,
    sigma: float | Tensor,
    reduction: Reduction | None = None,
    count: int | None = None,
    client: Client | None = None,
    threads: int = 1,
) -> Posterior | Moments | Sources | Any:
    """Reduce the posterior over all images of all shards, shared out among workers, and return the result.

    The answer is that of ``estimator_of(images)(y, sigma=sigma, reduction=reduction)`` for the shards' images in a row,
    and sources are numbered so. ``estimator_of`` makes the estimator of a shard, such as
    ``partial(LocalEquivariantMMSE, physics=physics, patch_size=5)``. ``shards`` are tensors or arrays (k, c, h, w),
    which travel to the workers, names of ``.npy`` or ``.safetensors`` files, which the workers open, or a function of
    the shard's index, 0 to ``count`` - 1, that a worker calls for one or the other. A shard and its keys must fit into
    a worker's memory; ``estimator_of`` may move it to a GPU. The result is on the CPU, without gradients.

    ``client`` is connected to any cluster; ``None`` starts a process per core of this machine and ends them afterwards
    (in a script, under ``if __name__ == "__main__":``, as these processes import it). ``threads`` are PyTorch's, for
    one shard: 1 where every core has a worker or a thread of Dask's.

    Raises ``RuntimeError`` that names the shard where one fails, or where the client has no workers; ``TypeError`` or
    ``ValueError`` for arguments that no shard could take.
    Source: S12.6.
    """
    facts = {"sigma": sigma, "reduction": reduction, "count": count, "client": client, "threads": threads}
    return partial_posterior(estimator_of, shards, y, **facts).result()


def partial_posterior(
    estimator_of: Callable[[Tensor], Estimator],
    shards: Sequence[Shard] | Callable[[int], Shard],
    y: Float[Tensor, "b ..."],
    *,
    sigma: float | Tensor,
    reduction: Reduction | None = None,
    count: int | None = None,
    client: Client | None = None,
    threads: int = 1,
) -> PartialPosterior:
    """Reduce like ``reduce``, and return what can be kept and merged with more shards: a ``PartialPosterior``."""
    if not callable(estimator_of):
        came = type(estimator_of).__name__
        raise TypeError(f"estimator_of makes an estimator of a shard's images, such as partial(MMSE, ...): got {came}.")
    if not isinstance(y, Tensor) or y.ndim < 1:
        raise ValueError(f"y must be a torch tensor, (b, ...): got {type(y).__name__}. torch.from_numpy turns arrays.")
    sources, source_of = _checked_shards(shards, count)
    reduction, sigma = checked_reduction(reduction), checked_sigma(sigma, len(y), y.device).cpu()
    threads = positive_integer(threads, "threads counts PyTorch's threads for a shard")
    job = _Job(estimator_of, source_of, _compact(y), _compact(sigma), reduction, threads)
    with _connected(client, len(sources)) as connected:
        return _reduced(job, sources, connected)


# ---------------------------------------------------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class _Job:
    """What the shards share; a worker gets it once."""

    estimator_of: Callable[[Tensor], Estimator]
    source_of: Callable[[int], Shard] | None
    y: Tensor
    sigma: Tensor
    reduction: Reduction
    threads: int

    def of_shard(self, source: Shard | int) -> PartialPosterior:
        """Return the partial posterior of a shard, on the CPU."""
        with silence(), _torch_threads(self.threads):
            estimator = self.estimator_of(_images_of(source if self.source_of is None else self.source_of(source)))
            y = self.y.to(estimator.device)
            return _sent(estimator.partial_posterior(y, sigma=self.sigma, reduction=self.reduction))


def _of_shard(source: Shard | int, *, job: _Job) -> PartialPosterior:
    return job.of_shard(source)


def _merged(*parts: PartialPosterior) -> PartialPosterior:
    return _sent(fold(PartialPosterior.merge, parts))


def _opened(job: bytes) -> _Job:
    """Return the job: the result of a task is made again where it is lost, data sent to a worker is not."""
    return pickle.loads(job)


def _sent(partial: PartialPosterior) -> PartialPosterior:
    """Return a partial posterior as it travels: on the CPU, and of no more than its own numbers."""
    state = type(partial.state)(*map(_compact, partial.state))
    return replace(partial, state=state, layout=replace(partial.layout, device=torch.device("cpu")))


def _compact(x: Tensor) -> Tensor:
    """Return a tensor on the CPU, without the rest of the memory that it is a view of: pickle would send it along."""
    x = x.detach().cpu()
    if x.ndim and len(x) > 1 and x.stride(0) == 0:
        return _compact(x[:1]).expand_as(x)  # one measurement at several sigmas stays one
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def _images_of(source: Shard) -> Tensor | ImageSet:
    """Return the images of a shard."""
    if isinstance(source, str | os.PathLike):
        path = _checked_path(source)
        source = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _only_tensor_of(path)
    return torch.from_numpy(source) if isinstance(source, np.ndarray) else source


def _only_tensor_of(path: Path) -> Tensor:
    from safetensors.torch import load_file  # not at the top: it loads more of torch than `.npy` files need

    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"A .safetensors shard holds one tensor, its images: {path} holds {sorted(tensors)}.")
    return next(iter(tensors.values()))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------------- on the client


def _reduced(job: _Job, sources: list, client: Client) -> PartialPosterior:
    """Hand out the shards and the merges of their results, wait with a bar, and return the last merge."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):  # tensors are meant to travel
        opened = client.submit(_opened, _packed(job), pure=False)
        shards = client.map(_of_shard, sources, job=opened, key="shard", pure=False)
    total = _tree(shards, client)
    try:
        done = as_completed(shards, loop=client.loop)
        for _, future in zip(progress(range(len(shards)), description="Shards", unit="shard"), done, strict=False):
            if future.status != "finished":
                i = shards.index(future)
                raise _failure(f"Shard {i} of {len(shards)} ({_named(sources[i])})", future)
            future.release()  # its result may go once it is merged
        return total.result()
    finally:
        for future in (*shards, total):
            future.release()  # whatever still waits to be computed will not be


def _packed(job: _Job) -> bytes:
    """Return the job as it travels, or raise ``TypeError`` where it cannot."""
    try:
        return cloudpickle.dumps(job)
    except (TypeError, pickle.PicklingError) as error:
        raise TypeError(
            f"estimator_of, and shards where it is a function, travel to other processes, and this does not: {error}. "
            "Open files, locks and the like inside the function."
        ) from error


def _tree(parts: list[Future], client: Client) -> Future:
    """Return the merge of neighbours, level by level; merges go before shards, so that few results wait."""
    while True:
        groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
        parts = [client.submit(_merged, *group, key=None, pure=False, priority=1) for group in groups]
        if len(parts) == 1:
            return parts[0]


def _failure(shard: str, future: Future) -> RuntimeError:
    """Return an error that names the shard of a future that failed, caused by what failed there."""
    error = future.exception()
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, KilledWorker):
        what = (
            "the workers that held it died. It, or a shard that waited beside it, may need more memory than they have: "
            "make smaller shards or larger workers"
        )
    failure = RuntimeError(f"{shard} failed: {what}")
    failure.__cause__ = error
    return failure


@contextmanager
def _connected(client: Client | None, shards: int) -> Iterator[Client]:
    """Yield a client that has workers: the given one, or one of processes on this machine, which end with it."""
    if client is None:
        facts = {"n_workers": min(CPU_COUNT, shards), "threads_per_worker": 1, "dashboard_address": ":0"}
        with LocalCluster(**facts) as cluster, Client(cluster, set_as_default=False) as local:
            yield local
        return
    if not isinstance(client, Client) or client.asynchronous:
        came = "an asynchronous one" if isinstance(client, Client) else type(client).__name__
        raise TypeError(f"client must be a synchronous dask.distributed.Client, or None for this machine: got {came}.")
    if not client.nthreads():
        raise RuntimeError(
            f"{client} has no workers. Start some, with cluster.scale(2) or the command `dask worker ADDRESS`, and "
            "client.wait_for_workers(1); an adaptive cluster needs minimum=1. client=None uses this machine."
        )
    yield client


def _checked_shards(shards: Any, count: int | None) -> tuple[list, Callable[[int], Shard] | None]:
    """Return what tells one shard from the others, and the function that makes a shard of it where there is one."""
    if callable(shards):
        if count is None:
            raise ValueError("shards is a function of the shard's index: say how many there are, with count=.")
        return list(range(positive_integer(count, "count counts shards"))), shards
    if isinstance(shards, Tensor | np.ndarray | str | os.PathLike) or not isinstance(shards, Sequence):
        came = _named(shards) if isinstance(shards, Tensor | str | os.PathLike) else type(shards).__name__
        hint = "images.split(1000) makes shards of a tensor, [path] a list of one file."
        raise TypeError(f"shards is a list of tensors or files, or a function of an index: got {came}. {hint}")
    if not shards or count not in (None, len(shards)):
        counted = "" if count is None else f", count={count}"
        raise ValueError(f"shards holds {len(shards)}{counted}: at least one is needed, and count only of a function.")
    return [_ready_to_travel(shard) for shard in shards], None


def _ready_to_travel(shard: Shard) -> Shard:
    if isinstance(shard, str | os.PathLike):
        return _checked_path(shard)
    return _compact(shard) if isinstance(shard, Tensor) else shard


def _checked_path(path: str | os.PathLike) -> Path:
    """Return the path from the root, or raise ``ValueError`` where it is of no kind that is read."""
    path = Path(path).absolute()
    if path.suffix not in FILES:
        raise ValueError(
            f"A shard's file is {' or '.join(FILES)}: got {path}. Pickled tensors (.pt, .pth) can run any code as they "
            "are opened; write them anew, with safetensors.torch.save_file({'images': images}, path)."
        )
    return path


def _named(shard: Shard | int) -> str:
    """Return what an error calls a shard."""
    if isinstance(shard, int):
        return f"shards({shard})"
    if isinstance(shard, str | os.PathLike):
        return str(shard)
    return f"{type(shard).__name__} of {tuple(shard.shape)}"
