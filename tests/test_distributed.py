"""Shards on two worker processes: the answer of one process, whatever the shards are and whoever dies."""

import asyncio
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from dask.distributed import Client, LocalCluster
from safetensors.torch import save_file

import lemmse as le
from lemmse import _progress
from operators_registry import FORWARD, IMAGE
from problems import LazyImages, assert_same, measured, training_set

REDUCTIONS = [le.PosteriorMean(), le.PosteriorMoments(), le.TopSources(3), le.TopImages(2)]
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-10}
PHYSICS = FORWARD["inpainting stripes"]
LOCAL = partial(le.LocalEquivariantMMSE, physics=le.Denoising(), patch_size=3)
COUNT = 11
SIZES = [1, 4, 2, 4]


def estimator_of(images, kind: str):
    """An estimator of a class, through the pseudo-inverse of a mask of stripes."""
    arguments = (3,) if kind == "LocalEquivariantMMSE" else ()
    return getattr(le, kind)(images, PHYSICS, *arguments, pre_inverse=le.PseudoInverse(PHYSICS))


@pytest.fixture(scope="module")
def cluster():
    """Two processes of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    """A client of the two processes."""
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
        yield client


def cut(images, sizes=SIZES) -> list[torch.Tensor]:
    """Images in shards of unequal sizes."""
    return list(images.split(sizes))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", ["MMSE", "EquivariantMMSE", "LocalEquivariantMMSE"])
def test_shards_have_the_answer_of_one_process(kind, reduction, dtype, client, generator):
    images = training_set(count=COUNT, dtype=dtype)
    y, sigma = measured(images, PHYSICS, generator, sigma=0.5), torch.tensor([0.4, 0.6])
    whole = estimator_of(images, kind)(y, sigma=sigma, reduction=reduction)
    found = le.distributed.reduce(
        partial(estimator_of, kind=kind), cut(images), y, sigma=sigma, reduction=reduction, client=client
    )
    assert type(found) is type(whole)
    assert_same(found, whole, TOLERANCES[dtype])


def test_the_fused_kernel_on_shards(client, generator):
    """Large enough for the kernel in every shard, where numba is installed."""
    images = training_set(count=75, dtype=torch.float32, shape=(1, 28, 28))
    y = measured(images, le.Denoising(), generator, sigma=0.5, count=1)
    whole = LOCAL(images)(y, sigma=0.5)
    found = le.distributed.reduce(LOCAL, cut(images, [35, 40]), y, sigma=0.5, client=client)
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-6, atol=1e-6)
    largest = 9 / (2 * 0.5**2) * 1.5**2  # of r²/2σ², of which the log-partition is a sum: it rounds like those
    torch.testing.assert_close(found.log_partition, whole.log_partition, rtol=1e-6, atol=1e-6 * largest)


# ------------------------------------------------------------------------------------------------------ kinds of shards


def of_index(i: int) -> torch.Tensor:
    """The i-th shard of the training set."""
    return cut(training_set(count=COUNT))[i]


def lazily(i: int) -> LazyImages:
    return LazyImages(of_index(i))


class TestKindsOfShards:
    images = training_set(count=COUNT)
    y = images[3:5] * 0.9

    def check(self, shards, client, **facts):
        found = le.distributed.reduce(LOCAL, shards, self.y, sigma=0.5, client=client, **facts)
        assert_same(found, LOCAL(self.images)(self.y, sigma=0.5), 1e-10)

    @pytest.mark.parametrize("function", [of_index, lazily])
    def test_a_function_of_the_index(self, function, client):
        self.check(function, client, count=len(SIZES))

    def test_a_function_that_names_files(self, client, tmp_path):
        for i, shard in enumerate(cut(self.images)):
            np.save(tmp_path / f"{i}.npy", shard.numpy())
        self.check(lambda i: f"{tmp_path}/{i}.npy", client, count=len(SIZES))

    def test_files_beside_tensors_and_arrays(self, client, tmp_path, monkeypatch):
        one, two, three, four = cut(self.images)
        np.save(tmp_path / "one.npy", one.numpy())
        save_file({"images": two.contiguous()}, tmp_path / "two.safetensors")
        monkeypatch.chdir(tmp_path)  # a relative name is the client's, not the workers'
        self.check(["one.npy", tmp_path / "two.safetensors", three.numpy(), four], client)

    def test_more_shards_than_a_merge_takes(self, client):
        assert le.distributed.FAN_IN < COUNT
        self.check(self.images.split(1), client)

    def test_one_shard(self, client):
        self.check([self.images], client)

    def test_no_client(self):
        self.check(self.images.split(6), None)

    def test_partial_posteriors_go_on(self, client):
        shards = cut(self.images)
        first, rest = (
            le.distributed.partial_posterior(LOCAL, some, self.y, sigma=0.5, client=client)
            for some in (shards[:3], shards[3:])
        )
        assert (first.images, rest.images) == (7, 4)
        kept = pickle.loads(pickle.dumps(first))
        assert_same(kept.merge(rest).result(), LOCAL(self.images)(self.y, sigma=0.5), 1e-10)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_workers_with_a_gpu(self, client):
        found = le.distributed.reduce(
            lambda images: LOCAL(images.cuda()), cut(self.images), self.y, sigma=0.5, client=client
        )
        assert found.mean.device.type == "cpu"
        assert_same(found, LOCAL(self.images)(self.y, sigma=0.5), 1e-10)


def test_threads_of_one_process():
    """Whatever the cluster is: here three threads of the client's own process, whose settings stay what they are."""
    images = training_set(count=COUNT)
    torch.set_num_threads(2)
    try:
        with Client(processes=False, n_workers=1, threads_per_worker=3, dashboard_address=":0") as client:
            found = le.distributed.reduce(LOCAL, cut(images), images[:2], sigma=0.5, client=client)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert_same(found, LOCAL(images)(images[:2], sigma=0.5), 1e-10)


class TestWhatTravels:
    def test_a_partial_posterior_does_not_grow_with_the_images(self, client):
        y = training_set(1, count=1)
        sizes = []
        for each in (2, 60):
            shards = training_set(count=3 * each).split(each)
            found = [
                le.distributed.partial_posterior(LOCAL, shards, y, sigma=0.5, reduction=reduction, client=client)
                for reduction in REDUCTIONS
            ]
            sizes.append([len(pickle.dumps(partial_posterior.state)) for partial_posterior in found])
        assert sizes[0] == sizes[1]

    def test_a_tensor_takes_no_others_along(self):
        images = training_set(count=100)
        slim = le.distributed._compact(images[7:8])
        assert torch.equal(slim, images[7:8])
        assert len(pickle.dumps(slim)) < len(pickle.dumps(images[7:8])) / 50

    def test_one_measurement_at_several_sigmas_stays_one(self, client):
        images, sigma = training_set(count=5), torch.linspace(0.2, 0.9, 6)
        y = training_set(1, count=4)[2:3].expand(6, *IMAGE)
        sent = pickle.loads(pickle.dumps(le.distributed._compact(y)))
        assert sent.stride(0) == 0
        assert sent.untyped_storage().nbytes() == y[0].nbytes
        found = le.distributed.reduce(LOCAL, images.split(3), y, sigma=sigma, client=client)
        assert_same(found, LOCAL(images)(y, sigma=sigma), 1e-10)

    def test_threads_are_given_back(self):
        before = torch.get_num_threads()
        with le.distributed._torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
        assert torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------------------ failures


def slow_shard(i: int, folder: str) -> torch.Tensor:
    """A shard that notes who makes it, and takes a while."""
    with open(f"{folder}/{i}-{os.getpid()}", "x"):
        time.sleep(0.25)
    return training_set(i, count=2)


def runs(folder) -> list[tuple[int, int]]:
    """Shard and process of every note."""
    return [tuple(map(int, path.name.split("-"))) for path in folder.iterdir()]


def deadly(i: int) -> torch.Tensor:
    """A shard that takes its worker with it, as one that is too large may do."""
    if i == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return training_set(i, count=2)


def test_a_worker_killed_in_mid_run_loses_nothing(client, tmp_path):
    count, y = 14, training_set(99, count=1)
    client.wait_for_workers(2)
    workers = set(client.run(os.getpid).values())
    assert len(workers) == 2
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            le.distributed.reduce,
            LOCAL,
            partial(slow_shard, folder=str(tmp_path)),
            y,
            sigma=0.5,
            reduction=le.TopSources(3),
            count=count,
            client=client,
        )
        deadline = time.monotonic() + 30
        while len(runs(tmp_path)) < 6 or {pid for _, pid in runs(tmp_path)} != workers:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(min(workers), signal.SIGKILL)
        assert not answer.done()
        found = answer.result(timeout=60)
    images = torch.cat([training_set(i, count=2) for i in range(count)])
    assert_same(found, LOCAL(images)(y, sigma=0.5, reduction=le.TopSources(3)), 1e-10)
    made = runs(tmp_path)
    again = [i for i, pid in made if pid == min(workers) and any(j == i and other != pid for j, other in made)]
    assert again  # what the dead worker had, another made anew


def test_shards_that_kill_their_workers_end_in_an_error(cluster, client, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)  # by default, a few more workers would have to die
    with pytest.raises(RuntimeError, match=r"Shard (\d) of 4 \(shards\(\1\)\) failed: the workers.*died.*smaller"):
        le.distributed.reduce(LOCAL, deadly, training_set(count=1), sigma=0.5, count=4, client=client)


class TestErrors:
    images = training_set(count=COUNT)
    y = images[:1]

    def reduce(self, shards, client, *, y=y, make=LOCAL, **facts):
        return le.distributed.reduce(make, shards, y, sigma=facts.pop("sigma", 0.5), client=client, **facts)

    def test_a_shard_that_raises_is_named_with_its_cause(self, client):
        shards = cut(self.images)
        shards[2] = shards[2] * torch.nan
        with pytest.raises(RuntimeError, match=r"Shard 2 of 4 \(Tensor of \(2, 2.*\) failed: ValueError.*finite") as e:
            self.reduce(shards, client)
        assert isinstance(e.value.__cause__, ValueError)

    def test_a_file_that_is_missing_or_not_of_images(self, client, tmp_path):
        with pytest.raises(RuntimeError, match=r"Shard 1 of 2 \(.*gone\.npy\) failed: FileNotFoundError"):
            self.reduce([self.images, tmp_path / "gone.npy"], client)
        save_file({"images": self.images, "labels": torch.zeros(3)}, tmp_path / "two.safetensors")
        with pytest.raises(RuntimeError, match=r"Shard 0 of 1.*one tensor.*'images', 'labels'"):
            self.reduce([tmp_path / "two.safetensors"], client)
        np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
        with pytest.raises(RuntimeError, match=r"Shard 0 of 1.*allow_pickle=False"):
            self.reduce([tmp_path / "objects.npy"], client)

    def test_pickles_are_refused_before_anything_starts(self):
        with pytest.raises(ValueError, match=r"\.npy or \.safetensors: got .*images\.pt.*save_file"):
            self.reduce(["images.pt"], None)

    def test_measurements_of_another_size_or_type(self, client):
        with pytest.raises(RuntimeError, match=r"Shard \d of 4.*y must have the shape"):
            self.reduce(cut(self.images), client, y=self.y[:, :1])
        with pytest.raises(RuntimeError, match=r"Shard \d of 4.*float32"):
            self.reduce(cut(self.images), client, y=self.y.float())

    def test_shards_that_do_not_belong_together(self, client):
        with pytest.raises(ValueError, match="Partial posteriors merge"):
            self.reduce(
                [self.images, self.images[..., 1:]], client, make=whatever_their_size, y=torch.zeros(1, 3).double()
            )

    def test_a_run_after_a_failure(self, client):
        with pytest.raises(RuntimeError, match="Shard"):
            self.reduce([self.images * torch.nan], client)
        assert_same(self.reduce([self.images], client), LOCAL(self.images)(self.y, sigma=0.5), 1e-10)

    def test_a_client_without_workers(self):
        with (
            LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
            Client(cluster, set_as_default=False) as client,
            pytest.raises(RuntimeError, match=r"no workers.*cluster\.scale.*wait_for_workers.*client=None"),
        ):
            self.reduce(cut(self.images), client)

    def test_what_cannot_travel(self, client):
        lock = threading.Lock()
        with pytest.raises(TypeError, match=r"estimator_of.*travel.*lock.*inside the function"):
            self.reduce([self.images], client, make=lambda images: (lock, LOCAL(images))[1])

    def test_an_asynchronous_client(self, cluster):
        async def ask():
            async with Client(cluster.scheduler_address, asynchronous=True) as client:
                self.reduce([self.images], client)

        with pytest.raises(TypeError, match=r"synchronous.*got an asynchronous one"):
            asyncio.run(ask())

    def test_no_client_at_all(self, unchecked_shapes):
        with pytest.raises(TypeError, match=r"synchronous dask\.distributed\.Client.*got str"):
            le.distributed.reduce(LOCAL, [self.images], self.y, sigma=0.5, client="tcp://scheduler:8786")

    @pytest.mark.parametrize(
        ("shards", "facts", "error", "message"),
        [
            (of_index, {}, ValueError, "count="),
            (of_index, {"count": 0}, ValueError, "positive integer"),
            ([], {}, ValueError, "at least one"),
            ([images], {"count": 2}, ValueError, "holds 1, count=2"),
            ([images], {"sigma": 0.0}, ValueError, "positive"),
            ([images], {"threads": 0}, ValueError, "threads"),
        ],
    )
    def test_arguments_that_no_shard_could_take(self, shards, facts, error, message):
        with pytest.raises(error, match=message):
            self.reduce(shards, None, **facts)


def whatever_their_size(images):
    """An estimator from measurements of three numbers, for images of any size."""
    shape = tuple(images.shape[1:])
    return le.MMSE(images, le.Matrix(torch.zeros(3, images[0].numel(), dtype=images.dtype), shape, (3,)))


# ------------------------------------------------------------------------------------------------------------ progress


def test_a_bar_counts_shards(client, monkeypatch, capsys):
    monkeypatch.setattr(_progress, "PATIENCE", -1.0)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    le.distributed.reduce(LOCAL, cut(training_set(count=COUNT)), training_set(count=1), sigma=0.5, client=client)
    assert "Shards" in capsys.readouterr().err


def test_workers_show_no_bars_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(_progress, "PATIENCE", -1.0)
    images = training_set(count=3)
    job = le.distributed._Job(LOCAL, None, images[:1], torch.tensor([0.5]), le.PosteriorMean(), 1)
    assert job.of_shard(images).images == 3
    assert capsys.readouterr().err == ""
    LOCAL(images)
    assert "Local" in capsys.readouterr().err


class TestTheTestsFail:
    def test_shards_in_another_order_have_other_numbers(self, client):
        images = training_set(count=COUNT)
        facts = {"sigma": 0.01, "reduction": le.TopSources(1), "client": client}
        found = [
            le.distributed.reduce(partial(le.MMSE, physics=le.Denoising()), shards, images[:1], **facts)
            for shards in (cut(images), cut(images)[::-1])
        ]
        assert [each.image.item() for each in found] == [0, COUNT - 1]
