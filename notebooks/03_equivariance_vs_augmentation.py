# %% [markdown]
# # 03 · Is data augmentation the same as an equivariant architecture?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/03_equivariance_vs_augmentation.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/03_equivariance_vs_augmentation.ipynb)
#
# Notebook 02: a network that may be *any* function should copy its training images. A convolutional network treats all
# places alike. One can build that in (the architecture) or teach it, by showing every training image in every place
# (augmentation). **Do both end in the same estimator?** About 40 minutes:
#
# * [Who follows?](#Who-follows?)
# * [The theorem in the open](#The-theorem-in-the-open)
# * [All shifts in one stroke](#All-shifts-in-one-stroke)
# * [Deconvolution: B does not matter](#Deconvolution:-B-does-not-matter)
# * [Inpainting: three answers](#Inpainting:-three-answers)
# * [The same, or different?](#The-same,-or-different?)
# * [Do trained networks do it?](#Do-trained-networks-do-it?)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown] tags=["predict"]
# ## Who follows?
#
# $T_g$ shifts an image by $g$ rows and columns: $(T_gx)(n)=x(n-g)$, around the border. A function is *equivariant* if its
# output follows its input, $\varphi(T_gv)=T_g\,\varphi(v)$ for every $g$. Convolutions are; an MLP is not.
#
# **Predict.** A noisy T-shirt is shifted by 6 rows and 9 columns. What will the unconstrained `MMSE` of notebook 02 make
# of it, and what the best *equivariant* function?

# %%
from functools import partial
from itertools import product
from math import log2

import torch
from torch.nn.functional import avg_pool2d, pad

import lemmse as le

torch.set_num_threads(1)  # for problems this small, threads would only wait for one another
noise = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
images, unseen = le.data.fashion_mnist("train", count=200).double(), le.data.fashion_mnist("test", count=200).double()
estimators = {f"x_hat {kind.__name__}": kind(images, le.Denoising()) for kind in (le.MMSE, le.EquivariantMMSE)}
x, sigma, g = unseen[[120]], 0.5, (6, 9)
y = x + sigma * noise(1, 1, 28, 28)
both = torch.cat([y, le.shift(y, g)])
answers = {name: phi(both, sigma=sigma).mean for name, phi in estimators.items()}
le.figures.show({"x": torch.cat([x, le.shift(x, g)]), "y": both} | answers)

# %% [markdown]
# Above, before the shift; below, after. The equivariant answer is the same garment, elsewhere. `MMSE` has no shirt there;
# it offers whatever covers the bright pixels. Next, $\|\varphi(T_gy)-T_g\varphi(y)\|/\|\varphi(y)\|$ over 20 random shifts.
# Then move the scene by hand: which shifts are followed?

# %% tags=["claim"] claim="03-equivariant-follows-mmse-does-not"
# NBVAL_CHECK_OUTPUT
shifts = [divmod(int(n), 28) for n in torch.randperm(784, generator=torch.Generator().manual_seed(1))[:20]]
for name, phi in estimators.items():
    answer, moved = phi(y, sigma=sigma).mean, phi(torch.cat([le.shift(y, g) for g in shifts]), sigma=sigma).mean
    missed = torch.stack([(m - le.shift(answer[0], g)).norm() / answer.norm() for m, g in zip(moved, shifts)])
    print(f"{name}: misses by {missed.min():.2f} to {missed.max():.2f}")
    assert missed.max() < 1e-12 if "Equivariant" in name else missed.min() > 0.25

# %% tags=["explorable"]
le.ui.explorables.equivariance_vs_augmentation.shift_by_hand()

# %% [markdown]
# ## The theorem in the open
#
# The training loss of an equivariant $\varphi$ on the pair $(By_d,x_d)$ is also its loss on every shifted pair
# $(T_gBy_d,\,T_gx_d)$. The best function of *any* kind for all shifted pairs is, by notebook 02, a weighted mean of
# shifted images, and it turns out equivariant. The Gaussian of $T_gBy_d$ lives on $T_g\operatorname{Im}B$, and by notebook
# 01 only Gaussians on *one* subspace compete:
#
# $$\hat x=\sum_d\sum_{g\in\mathcal G}w_{d,g}\,T_gx_d,\qquad w_{d,g}\propto\mathcal N(T_g^{-1}v;\,BAx_d,\,\sigma^2BB^\top),
# \qquad\mathcal G=\{g:T_g\operatorname{Im}B=\operatorname{Im}B\}.$$
#
# The shifts in $\mathcal G$ are *admissible*.


# %%
def theorem(images, A, B, y, sigma):
    """Return the best equivariant function of v = B y, and its weights, for dense matrices A and B."""
    size, B_plus, v = images.shape[1:], torch.linalg.pinv(B, rtol=1e-10), B @ y
    exponents, atoms = [], []
    for x, g in product(images, product(range(size[1]), range(size[2]))):
        back = le.shift(v.view(size), (-g[0], -g[1])).flatten()
        if (back - B @ B_plus @ back).norm() < 1e-7 * v.norm():  # g is admissible: v, shifted back, is still in Im B
            r = B_plus @ (back - B @ A @ x.flatten())
            exponents.append(-r.dot(r) / (2 * sigma**2))
            atoms.append(le.shift(x, g))
    weights = torch.softmax(torch.stack(exponents), dim=0)
    return torch.einsum("k,kchw->chw", weights, torch.stack(atoms)), weights


# %% tags=["claim"] claim="03-package-agrees-with-theorem"
# NBVAL_CHECK_OUTPUT
size, sigma, matrix = (1, 4, 5), 1.0, le.operators.dense_matrix
tiny, A = noise(3, *size).sigmoid(), le.Matrix(noise(20, 20) / 4, size, size)
y = A.A(tiny[:1]) + sigma * noise(1, *size)
columns, pixels = torch.tensor([1.0, 1, 0, 1, 0]).expand(4, 5).clone(), le.random_mask(4, 5, keep=0.5)
pre_inverses = {"Id": le.Denoising(), "rank 7": le.Matrix(noise(20, 7) @ noise(7, 20), size, size)}
pre_inverses |= {"mask of columns": le.Inpainting(columns), "mask of pixels": le.Inpainting(pixels)}
for name, B in pre_inverses.items():
    x_hat, weights = theorem(tiny, matrix(A, size), matrix(B, size), y.flatten(), sigma)
    package = le.EquivariantMMSE(tiny, A, pre_inverse=B)
    torch.testing.assert_close(package(y, sigma=sigma).mean[0], x_hat, atol=1e-10, rtol=0)
    assert len(weights) == 3 * package.admissible_shifts.sum()
    print(f"B = {name:15}: {len(weights) // 3:2} of 20 shifts are admissible, largest weight {weights.max():.2f}")

# %% [markdown]
# The package agrees. A mask of columns admits shifts up and down; one of single pixels, or a random matrix of low rank,
# none but 0.
#
# ## All shifts in one stroke
#
# For each image, the loop visits $N$ shifts of $N$ pixels. But
#
# $$\|T_g^{-1}y-Ax_d\|^2=\|y\|^2+\|Ax_d\|^2-2\,\langle y,T_gAx_d\rangle,$$
#
# where the last term, for all $g$ at once, is a circular correlation: one product in Fourier space. (The mean is
# another.) This is $B=\mathrm{Id}$; it works whenever $BB^\top$ commutes with shifts.

# %% tags=["claim"] claim="03-one-correlation-weighs-all-shifts"
# NBVAL_CHECK_OUTPUT
fft, ifft, A, sigma = torch.fft.fft2, torch.fft.ifft2, le.Denoising(), 1.0
y = le.shift(x, g) + sigma * noise(1, 1, 28, 28)
correlation = ifft(fft(y) * fft(A.A(images)).conj()).real.sum(1)  # (D, h, w): one number for every image and shift
r2 = y.square().sum() + A.A(images).square().sum((1, 2, 3))[:, None, None] - 2 * correlation
weights = torch.softmax(-r2.flatten() / (2 * sigma**2), dim=0).view_as(r2)
package = estimators["x_hat EquivariantMMSE"](y, sigma=sigma, reduction=le.TopSources(4))
heaviest = weights.flatten().topk(4)
torch.testing.assert_close(package.weight[0], heaviest.values)
assert torch.equal(package.image[0] * 784 + package.pixel[0], heaviest.indices)
sources = [(f"image {d}", divmod(n, 28)) for d, n in zip(package.image[0].tolist(), package.pixel[0].tolist())]
print(*(f"{image} shifted by {g}: {w:.2f}" for (image, g), w in zip(sources, package.weight[0])), sep="\n")
print(f"loop: {784 * 784:,} products an image; Fourier: about {784 * log2(784):,.0f}")

# %%
where = le.figures.HeatMap(weights.sum(0), low=0)
le.figures.show({"x": le.shift(x, g), "y": y, "weight of each shift": where}, size=200)

# %% [markdown] tags=["predict"]
# The equivariant estimator finds the shirt to within two pixels.
#
# ## Deconvolution: B does not matter
#
# Let $A$ be a blur. An invertible convolution $B$ can be undone, and undoing commutes with shifts: distances, weights and
# estimate are those of $B=\mathrm{Id}$.
#
# **Predict.** $A^+$ turns $y$ into a storm of amplified noise. Does the estimate suffer? Another $B$ dims the right half
# to 30 %, and can be undone as well. Is it as harmless?

# %% tags=["claim"] claim="03-invertible-convolutions-are-all-alike"
# NBVAL_CHECK_OUTPUT
A, sigma = le.Blur(le.optics.gaussian_psf(1.0, size=9)), 0.3
x = le.shift(unseen[[119]], (-4, 10))
y = A.A(x) + sigma * noise(1, 1, 28, 28)
cross = le.Blur(torch.tensor([[0.0, 0.1, 0.0], [0.05, 0.5, 0.15], [0.0, 0.1, 0.0]]).double())
choices = {"Id": le.Denoising(), "A⁺": le.PseudoInverse(A), "convolution": cross}
choices["dims one half"] = le.EpsilonInverse(le.half_mask(28, 28), 0.3)
shown = {"x": x, "y": y}
for name, B in choices.items():
    x_hat = le.EquivariantMMSE(images, A, pre_inverse=B)(y, sigma=sigma).mean
    shown[f"B = {name}"] = torch.cat([B.A(y), x_hat])
    change = (x_hat - shown["B = Id"][1]).abs().max().item()
    print(f"B = {name:13}: the estimate changes by up to {change:.2f}")
    assert (change < 1e-10) == (name != "dims one half")

# %%
le.figures.show(shown)

# %% [markdown]
# Above, what the network sees; below, what it should answer. The storm does no harm. Dimming does: shifted into
# the dim half, noise is three times as loud as it should be there, so no such shift is believed.
#
# ## Inpainting: three answers
#
# Half of the pixels are hidden. From here on garments stand in scenes of 20 × 20 pixels: ten to learn from,
# all in the middle. The true one, a bag, stands down and to the left. Three networks:
#
# 1. an unconstrained one, from all 400 shifts of each scene: `MMSE` on `le.data.ShiftedImages`;
# 2. an equivariant one that sees $y$, with noise in the holes ($B=\mathrm{Id}$);
# 3. an equivariant one that sees $A^+y$, black in the holes.

# %% tags=["claim"] claim="03-inpainting-has-three-answers"
stage, size, sigma = partial(pad, pad=(3, 3, 3, 3)), (1, 20, 20), 0.3
scenes, x = stage(avg_pool2d(images[:10], 2)), le.shift(stage(avg_pool2d(unseen[[58]], 2)), (3, -3))
hide = le.Inpainting(le.random_mask(20, 20, keep=0.5))
y, A_plus = hide.A(x) + sigma * noise(1, *size), le.PseudoInverse(hide)
networks = {
    "augmented": le.MMSE(le.data.ShiftedImages(scenes), hide),
    "equivariant, Id": le.EquivariantMMSE(scenes, hide),
    "equivariant, A⁺": le.EquivariantMMSE(scenes, hide, pre_inverse=A_plus),
    "MMSE, no shifts": le.MMSE(scenes, hide),
}
answers = {name: network(y, sigma=sigma).mean for name, network in networks.items()}
distances = torch.cdist(*2 * [torch.stack(list(answers.values())).flatten(1)])
assert (distances[:3, :3].fill_diagonal_(9) > 3).all() and distances[2, 3] < 1e-10  # the last two are one
assert answers["equivariant, Id"].sum() < 0.6 * answers["augmented"].sum()  # a smaller garment
le.figures.show({"x": x, "y": y, "A⁺y": A_plus.A(y)} | answers, columns=7, size=120)

# %% [markdown] tags=["predict"]
# Augmentation finds the bag, and its place. The equivariant network that sees $y$ may shift, but the holes of $Ax_d$ shift
# along, to where $y$ has none, and it pays for every one: a small shoe costs less. The one that sees $A^+y$ may not shift:
# no shift maps the mask to itself, so it *is* the `MMSE` of ten unshifted images.
#
# **Predict.** Which shifts are admissible with $B=A^+$ if half of the image is hidden? Stripes? If $A$ keeps every second
# pixel in both directions?

# %% tags=["claim"] claim="03-admissible-shifts"
# NBVAL_CHECK_OUTPUT
blur, box = le.Blur(le.optics.gaussian_psf(0.6, size=5)), le.Blur(torch.full((2, 2), 0.25).double())
down, half = le.Downsampling(2, le.optics.gaussian_psf(0.6, size=5)), le.Inpainting(le.half_mask(20, 20))
stripes = le.Inpainting(le.stripe_mask(20, 20, period=5))
physics = {"random mask": hide, "half mask": half, "stripes": stripes, "downsampling": down, "box blur": box}
B = {name: le.PseudoInverse(A) for name, A in physics.items()}
maps = {name: le.EquivariantMMSE(scenes, physics[name], pre_inverse=B[name]).admissible_shifts for name in B}
counts = {name: int(admissible.sum()) for name, admissible in maps.items()}
print("of 400:", counts)
assert list(counts.values()) == [1, 20, 80, 100, 400]

# %%
seen = le.figures.show({name: B[name].A(A.A(torch.ones(1, *size).double())) for name, A in physics.items()})
allowed = {name: le.figures.HeatMap(admissible.double(), low=0, high=1) for name, admissible in maps.items()}
bright = le.figures.show(allowed, notes={name: f"{n} of 400" for name, n in counts.items()})
le.figures.stack(
    [seen.figure, bright.figure], alt=f"Above, A⁺A of a white image. Below, admissible shifts. {bright.alt}"
)

# %% [markdown] tags=["predict"]
# Above, what $A^+A$ leaves of a white image; below, the admissible shifts, bright, with 0 in the corner. They map a mask to
# itself; downsampling admits multiples of its factor, a blur all, though a singular one.
#
# ## The same, or different?
#
# Augmentation compares $v$ with $BAT_gx_d$, under noise of covariance $\sigma^2BB^\top$; equivariance with $T_gBAx_d$, under
# $\sigma^2T_gBB^\top T_g^\top$. If $BA$ and $BB^\top$ commute with every shift, these are the same. Conversely, take images
# whose shifts are linearly independent: equal means force equal weights, hence equal Gaussians, hence $T_gBA=BAT_g$ and
# $T_gBB^\top=BB^\top T_g$. **Augmentation equals equivariance, for every training set, if and only if $BA$ and $BB^\top$
# commute with every shift.** (Invertible convolutions suffice; they are not necessary.)
#
# **Predict.** Choose $A$ and $B$ below, and say *same* or *different* before you look. Find a "same" with a singular $A$;
# one without any convolution; and a pair with $BA=\mathrm{Id}$ that is different.

# %% tags=["explorable"]
le.ui.explorables.equivariance_vs_augmentation.equivariance_vs_augmentation()

# %% [markdown]
# Ten pairs, at the first noise level where three shifted images weigh over 5 % (where one takes all, formulas may agree).
# $O$ is a random rotation of the space of all images.

# %%
# NBVAL_CHECK_OUTPUT
turn, Id = torch.linalg.qr(noise(400, 400)).Q, le.Denoising()
shade = le.Matrix(torch.diag(torch.linspace(1, 0.3, 20).double().repeat(20)), size, size)  # dark to the right
turned = le.Compose(le.Matrix(turn.T.contiguous(), size, size), blur), le.Compose(cross, le.Matrix(turn, size, size))
pairs = {"Id, Id": (Id, Id), "blur, Id": (blur, Id), "box blur, A⁺": (box, le.PseudoInverse(box))}
pairs |= {"Oᵀ blur, other blur O": turned, "shade, A⁺": (shade, le.PseudoInverse(shade)), "Id, shade": (Id, shade)}
pairs |= {"random mask, Id": (hide, Id), "random mask, A⁺": (hide, A_plus)}
pairs |= {"downsampling, A⁺": (down, le.PseudoInverse(down)), "downsampling, Aᵀ": (down, le.Adjoint(down))}
print("the box blur is singular: its rank is", le.operators.rank(box, size), "of 400")


def off(matrix):
    """Return how far a matrix is from commuting with the shift by a row and by a column, which make all others."""
    M = matrix.view(20, 20, 20, 20)
    return max(((M.roll((1, 1), (axis, axis + 2)) - M).norm() / M.norm()).item() for axis in (0, 1))


# %% tags=["claim"] claim="03-same-iff-both-commute"
# NBVAL_CHECK_OUTPUT
augmented, levels = le.data.ShiftedImages(scenes)[:], (0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
print(f"{'A, B':22}   BA off  BBᵀ off  estimates differ by")
for name, (A, B) in pairs.items():
    clean = A.A(x)
    a, b, e = matrix(A, size), matrix(B, tuple(clean.shape[1:])), noise(*clean.shape)
    both = le.EquivariantMMSE(scenes, A, pre_inverse=B), le.MMSE(augmented, A, pre_inverse=B, chunk_size=400)
    weights = (both[1](clean + s * e, sigma=s, reduction=le.TopSources(3)).weight for s in levels)
    sigma = next(s for s, w in zip(levels, weights) if w.min() > 0.05)
    ours, theirs = (estimator(clean + sigma * e, sigma=sigma).mean for estimator in both)
    numbers = off(b @ a), off(b @ b.T), ((ours - theirs).norm() / theirs.norm()).item()
    print(f"{name:22}", *(f"{n:8.2f}" if n > 1e-9 else "       0" for n in numbers))
    assert (numbers[2] < 1e-10) == (max(numbers[:2]) < 1e-10) and (numbers[2] < 1e-10 or numbers[2] > 1e-3)

# %% [markdown] tags=["predict"]
# Four pairs are the same: one is singular, one holds a rotation. The shaded camera has $A^+A=\mathrm{Id}$, but
# $A^+$ amplifies noise more on the right. Inpainting with $B=\mathrm{Id}$ has $BB^\top=\mathrm{Id}$, but its holes stay put.
#
# ## Do trained networks do it?
#
# Two that ship with the package learnt from 1000 garments: a CNN, and an MLP that was shown all shifts. As
# $A=B=\mathrm{Id}$, both have one formula. It is optimal *for measurements of training images*: how rare, in their
# density, are those of unseen ones?
#
# **Predict.** How near does the CNN come to the formula? And what makes unseen measurements less rare: a hundred times as
# many images, or ten times as much noise?

# %% tags=["claim"] claim="03-trained-networks-leave-the-formula"
trained = {name: le.pretrained.load(f"fashion_mnist-denoising-{name}") for name in ("GlobalCNN", "GlobalMLP-shifted")}
cards = {name: card for name, (_, card) in trained.items()}
print(f"{'noise level':37}", *(f"{s:>6}" for s in cards["GlobalCNN"].psnr["test"]))
for split, kind in {"train": "training", "test": "unseen"}.items():
    rows = {"formula to truth": cards["GlobalCNN"].psnr_to_truth[split]["formula"]}
    rows |= {f"{name} to formula": card.psnr[split] for name, card in cards.items()}
    rows |= {f"{name} to truth": card.psnr_to_truth[split]["network"] for name, card in cards.items()}
    for row, values in rows.items():
        print(f"{kind:8} {row:28}", *(f"{db:6.1f}" for db in values.values()))
for card, s in product(cards.values(), ("0.05", "0.1")):
    assert card.psnr_to_truth["test"]["network"][s] > max(card.psnr["test"][s] + 3, card.psnr["train"][s] - 3)
x, sigma = le.shift(torch.cat([images[[3]], unseen[[120]]]), g).float(), 0.2
y, formula = x + sigma * noise(*x.shape).float(), cards["GlobalCNN"].estimator()
answers = {name: net(y, sigma).detach() for name, (net, _) in trained.items()}
le.figures.show({"x": x, "y": y, "formula": formula(y, sigma=sigma).mean} | answers)

# %% tags=["claim"] claim="03-unseen-measurements-are-rare"
# NBVAL_CHECK_OUTPUT
small, small_unseen = avg_pool2d(le.data.fashion_mnist("train", count=2000), 2), avg_pool2d(unseen[:12], 2).float()
sigmas, e, gap = (0.05, 0.1, 0.2, 0.5), noise(12, 1, 14, 14).float(), {}
for D in (20, 200, 2000):
    estimator, density = le.EquivariantMMSE(small[:D], le.Denoising()), {}
    for kind, clean in {"training": small[:12], "unseen": small_unseen}.items():  # with the same noise
        logs = [estimator.log_density(estimator(clean + s * e, sigma=s), s) for s in sigmas]
        density[kind] = torch.stack(logs).mean(1)
    gap[D] = density["training"] - density["unseen"]
    print(f"D = {D:4}: training above unseen by", *(f"{nats:5.0f}" for nats in gap[D].tolist()), "nats")
assert gap[2000][0] > gap[20][0] / 4 and all(gap[D][3] < gap[D][0] / 100 for D in gap)

# %% [markdown]
# Neither does: on training images the formula is the image. They treat seen and unseen garments nearly alike: the CNN
# smooths the weave of one it learnt from, and keeps the print of another; the formula does the opposite. At
# $\sigma=0.05$, a hundred times as many images leave over a quarter of the gap in density; ten times as much noise leaves
# less than a hundredth. Where the density is $e^{400}$ times smaller, no training step looked. How networks
# *generalise* is not in this formula.
#
# ## What we saw
#
# * The best equivariant function is a weighted mean of all *admissible* shifts of all training images, and the FFT weighs
#   them all at once.
# * For deconvolution, invertible convolutions $B$ are all alike; for inpainting, $B$ decides which shifts exist.
# * Augmentation equals equivariance if and only if $BA$ and $BB^\top$ commute with every shift.
#
# ## Where this stands in the paper
#
# The second of the three estimators of arXiv 2601.10334, for a CNN with a global receptive field; S4 in the package's
# docstrings. Next, in 04, each pixel sees one window only, and copies turn into patchworks.
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="03-admissible" minutes=4
# ### Exercise 1: count the shifts
#
# Images have 6 rows and 8 columns. The mask shows columns 0, 1, 4 and 5, and $B=A^+$. How many of the 48 shifts are
# admissible?
#
# <details><summary>Hint</summary>
#
# $\operatorname{Im}B$ is the set of images that are black where the mask hides. Which shifts map it to itself?
#
# </details>

# %% tags=["exercise"] exercise="03-admissible" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
from lemmse.exercises import Exercise

exercise = Exercise(
    "03-admissible",
    expected=12,
    mistakes={
        "All shifts are admissible with B = Id; A⁺ keeps the hidden columns black.": 48,
        "Those are the shifts of the columns; the rows are free, and each column shift goes with any of them.": 2,
        "The rows are free, but there is also a shift of the columns, other than 0, that maps the mask to itself.": 6,
        "Visible pixels are not shifts: by two columns, visible columns fall on hidden ones.": 24,
        "Rows and columns are chosen independently: multiply, do not add.": 8,
        "The shift must map the mask to itself; that the shifted mask overlaps with it is not enough.": 36,
    },
    why="6 rows times 2: the mask has the period 4.",
)

# %% tags=["exercise"] exercise="03-admissible"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="03-admissible"
# <details><summary>Solution</summary>
#
# ```python
# answer = 6 * 2
# ```
# The mask repeats after 4 columns, and any number of rows leaves it as it is.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="03-admissible"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 48
# ```
# forgets the support condition. And
#
# ```python
# answer = 2
# ```
# forgets that rows may move too.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="03-correlation" minutes=8
# ### Exercise 2: no loop
#
# Write `squared_distances(y, x)` for images (h, w): the map of $\|T_g^{-1}y-x\|^2$ over $g$, with shape (h, w),
# without a loop.
#
# <details><summary>Hint</summary>
#
# `torch.fft.ifft2(torch.fft.fft2(a) * torch.fft.fft2(b).conj()).real` holds $\langle a,T_gb\rangle$ at $g$.
#
# </details>

# %% tags=["exercise"] exercise="03-correlation" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import torch

from lemmse.exercises import Exercise


def correlation(a, b):
    """Return the inner products of a with all shifts of b."""
    return torch.fft.ifft2(torch.fft.fft2(a) * torch.fft.fft2(b).conj()).real


def norms(y, x):
    """Return the sum of both squared norms."""
    return y.square().sum() + x.square().sum()


draw = torch.Generator().manual_seed(0)
exercise = Exercise(
    "03-correlation",
    expected=lambda y, x: norms(y, x) - 2 * correlation(y, x),
    inputs=[tuple(torch.rand(2, 4, 5, generator=draw)), tuple(torch.rand(2, 3, 2, generator=draw))],
    mistakes={
        "That is the map of the opposite shifts: it is x that is shifted by g, so x is conjugated.": (
            lambda y, x: norms(y, x) - 2 * correlation(x, y)
        ),
        "That is the correlation; the squared norms are missing, and a factor.": correlation,
        "The cross term comes twice.": lambda y, x: norms(y, x) - correlation(y, x),
        "The squared norms are missing: they make a distance of it.": lambda y, x: -2 * correlation(y, x),
        "That is a convolution, which turns x upside down: conjugate one factor.": (
            lambda y, x: norms(y, x) - 2 * torch.fft.ifft2(torch.fft.fft2(y) * torch.fft.fft2(x)).real
        ),
        "The sign of the cross term: alike images are near.": lambda y, x: norms(y, x) + 2 * correlation(y, x),
    },
    why="Two Fourier transforms and one product instead of h·w distances.",
)


# %% tags=["exercise"] exercise="03-correlation"
def squared_distances(y, x):
    return ...


exercise.check(squared_distances)

# %% [markdown] tags=["solution"] exercise="03-correlation"
# <details><summary>Solution</summary>
#
# ```python
# def squared_distances(y, x):
#     fft = torch.fft.fft2
#     return y.square().sum() + x.square().sum() - 2 * torch.fft.ifft2(fft(y) * fft(x).conj()).real
# ```
# A shift keeps the norm, so that only the cross term depends on $g$.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="03-correlation"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def squared_distances(y, x):
#     fft = torch.fft.fft2
#     return y.square().sum() + x.square().sum() - 2 * torch.fft.ifft2(fft(x) * fft(y).conj()).real
# ```
# finds the shirt at $-g$. And
#
# ```python
# def squared_distances(y, x):
#     fft = torch.fft.fft2
#     return y.square().sum() + x.square().sum() - 2 * torch.fft.ifft2(fft(y) * fft(x)).real
# ```
# compares with the image upside down.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="03-which-pairs" minutes=6
# ### Exercise 3: which pairs are the same?
#
# For which pairs does augmentation equal equivariance? Answer with a set of numbers.
#
# 1. $A$ a blur, $B=A^\top$
# 2. $A$ dims the right half, $B$ brightens it again
# 3. $A=\mathrm{Id}$, $B$ a convolution that erases all high frequencies
# 4. $A$ mirrors left and right, $B=\mathrm{Id}$
# 5. $A$ mirrors left and right, $B$ mirrors back
#
# <details><summary>Hint</summary>
#
# Write down $BA$ and $BB^\top$.
#
# </details>

# %% tags=["exercise"] exercise="03-which-pairs" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "03-which-pairs",
    expected={1, 3, 5},
    mistakes={
        "Only the numbers 1 to 5 can be in the set.": lambda b: not {float(i) for i in b} <= {1, 2, 3, 4, 5},
        "2 has BA = Id, but the brightened noise is stronger on the right: BBᵀ does not commute.": lambda b: (
            2 in set(b)
        ),
        "4: to shift right and then mirror is to mirror and then shift left, so BA does not commute.": lambda b: (
            4 in set(b)
        ),
        "5 holds no convolution, but BA = Id and BBᵀ = Id.": lambda b: set(b) == {1, 3},
        "3 is singular, but BA and BBᵀ are convolutions, and these commute with shifts.": lambda b: set(b) == {1, 5},
        "Neither invertible nor convolutions are asked for: what are BA and BBᵀ in 3 and in 5?": lambda b: (
            set(b) == {1}
        ),
    },
    why="BA and BBᵀ must commute with every shift; nothing else is asked of A or B.",
)

# %% tags=["exercise"] exercise="03-which-pairs"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="03-which-pairs"
# <details><summary>Solution</summary>
#
# ```python
# answer = {1, 3, 5}
# ```
# In 1 and 3 both are convolutions, in 5 both are the identity.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="03-which-pairs"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = {1}
# ```
# believes that $A$ and $B$ must be invertible convolutions. And
#
# ```python
# answer = {1, 2, 3, 5}
# ```
# looks at $BA$ only.
#
# </details>
