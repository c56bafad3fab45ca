# %% [markdown]
# # 04 · Why is a CNN's output a patchwork, and what does a mask change?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/04_locality_and_inpainting.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/04_locality_and_inpainting.ipynb)
#
# A network that may be any function copies training images (02); one that treats all places alike copies shifted ones
# (03). Convolutional networks are bound once more: **each output pixel sees one window.** What is the best that such a
# network can do? About 45 minutes:
#
# * [What one pixel sees](#What-one-pixel-sees)
# * [The theorem in the open](#The-theorem-in-the-open)
# * [A portrait](#A-portrait)
# * [How many sources?](#How-many-sources?)
# * [Deconvolution: now B matters](#Deconvolution:-now-B-matters)
# * [Inpainting: who may speak?](#Inpainting:-who-may-speak?)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown] tags=["predict"]
# ## What one pixel sees
#
# A plain network: $L$ circular convolutions with random $k\times k$ weights, each followed by a nonlinearity.
#
# **Predict.** On how many input pixels does one output pixel depend, for $L=4$ and $k=3$? For $k=5$?

# %%
# NBVAL_CHECK_OUTPUT
from functools import partial

import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

import lemmse as le

torch.set_num_threads(1)  # for problems this small, threads would only wait for one another
noise = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
x, gradients = noise(1, 1, 20, 20).requires_grad_(), {}
for L, k in ((1, 3), (2, 3), (4, 3), (4, 5)):
    z = x
    for _ in range(L):
        z = conv2d(pad(z, 4 * [k // 2], mode="circular"), noise(1, 1, k, k) / k).tanh()
    (gradients[L, k],) = torch.autograd.grad(z[0, 0, 5, 12], x)  # of one output pixel, by all input pixels
    print(f"L = {L}, k = {k}: {gradients[L, k].count_nonzero():3} pixels")

# %% tags=["claim"] claim="04-a-stack-sees-a-window"
seen = {}
for (L, k), gradient in gradients.items():
    window = le.patches.window_index(20, 20, 1 + L * (k - 1))[5 * 20 + 12]
    assert gradient.flatten().nonzero().flatten().equal(window.sort().values)
    seen[f"L = {L}, k = {k}"] = le.figures.HeatMap(gradient[0].abs().clamp_min(1e-8).log10(), low=-8, high=0)
le.figures.show(seen, size=160)

# %% [markdown]
# Drawn is $\log_{10}$ of the gradient. Whatever the weights, an output pixel sees a window of side $p=1+L(k-1)$, going
# on around the border, and nothing else.
#
# ## The theorem in the open
#
# So every output pixel is $\hat x(n')=f(v[\omega_{n'}])$: *one* function $f$, applied to the window $\omega_{n'}$ of
# $v=By$ around $n'$. Every window of every training image is an example for it: $f$ sees $Q_ny$, where $Q_n$ holds the
# rows of $B$ in the window, and should answer the pixel at its centre, $x_d(n)$. The best answer is again a weighted
# mean,
#
# $$\hat x(n')=\sum_d\sum_{n\in\mathcal S}w_{d,n}\,x_d(n),\qquad
# w_{d,n}\propto\mathcal N\big(v[\omega_{n'}];\,Q_nAx_d,\,\sigma^2Q_nQ_n^\top\big),$$
#
# over the *stratum* $\mathcal S=\{n:\operatorname{Im}Q_n=\operatorname{Im}Q_{n'}\}$: by notebook 01, only Gaussians on
# one subspace compete.


# %%
# NBVAL_CHECK_OUTPUT
def theorem(images, A, B, y, sigma, p):
    """Return the best local equivariant function of v = B y (one channel), its weights, and who shares a stratum."""
    Q = B[le.patches.window_index(*images.shape[2:], p)]  # (N, p², M)
    Q_plus = torch.linalg.pinv(Q, rtol=1e-10)
    same = ((Q @ Q_plus)[:, None] - Q @ Q_plus).abs().amax((2, 3)) < 1e-7  # (N, N): equal projectors
    log_pdet = torch.stack([2 * s[s > 1e-10].log().sum() for s in torch.linalg.svdvals(Q)])
    difference = (Q @ y)[:, None, None] - torch.einsum("npm,dm->dnp", Q, images.flatten(1) @ A.T)  # (N, D, N, p²)
    r = torch.einsum("nmp,qdnp->qdnm", Q_plus, difference)
    exponents = -r.square().sum(-1) / (2 * sigma**2) - log_pdet / 2
    weights = exponents.masked_fill(~same[:, None], -torch.inf).flatten(1).softmax(1)  # (N, D N)
    return weights @ images.flatten(), weights, same


tiny, eye, size = noise(3, 1, 5, 6).sigmoid(), torch.eye(30, dtype=torch.float64), (1, 5, 6)
heaviest = theorem(tiny, eye, eye, noise(30).sigmoid(), sigma=0.3, p=3)[1][0].topk(5)
print("pixel 0 is the mean of 90 pixels:", *(f"{w:.2f} of {k}," for w, k in zip(*heaviest)), "…")

# %% tags=["claim"] claim="04-package-agrees-with-theorem"
# NBVAL_CHECK_OUTPUT
matrix, Id, A_plus = le.operators.dense_matrix, le.Denoising(), le.PseudoInverse
blur, hide = le.Blur(le.optics.gaussian_psf(0.6, size=3)), le.Inpainting(le.center_mask(5, 6, side=4))
pairs = {"Id, Id": (Id, Id), "blur, A⁺": (blur, A_plus(blur))}
pairs |= {"Id, rank 4": (Id, le.Matrix(noise(30, 4) @ noise(4, 30), size, size))}
pairs |= {"mask, Id": (hide, Id), "mask, A⁺": (hide, A_plus(hide))}
for name, (A, B) in pairs.items():
    y = A.A(tiny[:1]) + 0.5 * noise(1, *size)
    x_hat, _, same = theorem(tiny, matrix(A, size), matrix(B, size), y.flatten(), sigma=0.5, p=3)
    package = le.LocalEquivariantMMSE(tiny, A, patch_size=3, pre_inverse=B)
    torch.testing.assert_close(package(y, sigma=0.5).mean.flatten(), x_hat, atol=1e-10, rtol=0)
    assert len(same.unique(dim=0)) == len(package.strata)
    print(f"A, B = {name:10}: {len(package.strata):2} strata, ranks {package.ranks.min()} to {package.ranks.max()}")

# %% [markdown] tags=["predict"]
# The package agrees: one stratum where all windows are alike, one *per pixel* for a random matrix of low rank, and
# something between for a mask.
#
# ## A portrait
#
# Denoising, $A=B=\mathrm{Id}$: compare the window around $n'$ with all windows of all images, and average their
# *centres*.
#
# **Predict.** The training set: five bits of a photograph of a cat, five of a cup of coffee, five of a rocket. The
# network is shown the noisy portrait of an astronaut. What comes back if it sees $1\times1$, $3\times3$, … $11\times11$
# pixels?

# %% tags=["claim"] claim="04-outside-the-hull-of-all-shifts"
# NBVAL_CHECK_OUTPUT
crops = interpolate(le.data.photo_crops("train", size=96, count=341), size=48, mode="area")
images, x, sigma, paintings = torch.cat([crops[k:20:4] for k in (0, 1, 3)]), crops[[340]], 0.05, {}
y = x + sigma * noise(x.shape).float()
photo = torch.eye(3).repeat_interleave(5, 0)[:, :, None, None].expand(-1, -1, 48, 48)  # which photograph, at each pixel
labelled, colours_only = torch.cat([images, photo], 1), le.Nonlinear(lambda x: x[:, :3])  # it rides along, unmeasured
paint, fft = torch.tensor([[0, 114, 178], [230, 159, 0], [204, 121, 167]]) / 255, torch.fft.fft2
for p in (1, 3, 5, 7, 11):
    x_hat, share = le.LocalEquivariantMMSE(labelled, colours_only, p)(y, sigma=sigma).mean.split(3, 1)
    tint = torch.einsum("bkhw,kc->bchw", share, paint) * (0.15 + 1.1 * x_hat.mean(1, keepdim=True))
    paintings[f"p = {p}"] = torch.cat([x_hat, tint])
    u = x_hat - images.mean(0)  # along u, which of all shifts of all training images is the farthest out?
    farthest = torch.fft.ifft2(fft(images) * fft(u).conj()).real.sum(1).max()
    print(f"p = {p:2}: {(x_hat * u).sum() / farthest:.2f} times as far out as any shifted training image")
    assert (x_hat * u).sum() > 1.05 * farthest and images.min() - 1e-6 < x_hat.min() < x_hat.max() < images.max() + 1e-6

# %%
who = {"images": ["blue"] * 5 + ["orange"] * 5 + ["pink"] * 5}
above = le.figures.show(images=images, columns=15, size=48, notes=who)
below = le.figures.show({"x, y": torch.cat([x, y])} | paintings, size=144)
alt = """Above, bits of a cat, a cup of coffee and a rocket. Below, a portrait made of them: with windows of 1 and 3
pixels a likeness, with larger ones flat facets. Below each, in three colours, the photographs of its pixels."""
le.figures.stack([above.figure, below.figure], alt=alt)

# %% [markdown]
# No astronaut was in the training set, and there she is, painted with a cat (blue), coffee (orange) and a rocket
# (pink). Small windows find nearly any colour. Larger ones ask for whole details, which these photographs do not have,
# and the face falls into facets: a cubist portrait.
#
# The estimators of 02 and 03 stay in the convex hull of the training images, or of all their shifts. Here only each
# *pixel* is a mean of training pixels; the image lies outside, as one direction proves along which it is farther out
# than all of them.
#
# What is her eye made of? Touch other pixels too. Then, with garments, look for three regimes: a copy, a patchwork, a
# mean.

# %%
le.ui.PixelProbe(le.LocalEquivariantMMSE(images, Id, patch_size=5), y, sigma=sigma, k=3, pixel=(14, 16))

# %% tags=["explorable"]
le.ui.explorables.locality_and_inpainting.patchwork_of_windows()

# %% [markdown] tags=["predict"]
# Her eye is fur.
#
# ## How many sources?
#
# As in 02, $e^{H(w)}$ counts the effective sources, now of every pixel.
#
# **Predict.** Does a larger window average more sources, or fewer? And keep one $y$, but tell the estimator another
# $\sigma$: nearly 0, or huge. What does it answer?

# %% tags=["claim"] claim="04-larger-windows-fewer-sources"
# NBVAL_CHECK_OUTPUT
garments, unseen = (le.data.fashion_mnist(split, count=200) for split in ("train", "test"))
small, small_unseen = avg_pool2d(garments[:50], 2), avg_pool2d(unseen, 2)  # 14 × 14 pixels: 9800 windows
sigmas, e, sources = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0), noise(3, 1, 14, 14).float(), {}
for p in (1, 3, 5, 9, 13):
    phi = le.LocalEquivariantMMSE(small, Id, patch_size=p)
    moments = [phi(small_unseen[:3] + s * e, sigma=s, reduction=le.PosteriorMoments()) for s in sigmas]
    sources[p] = torch.stack([m.entropy.mean() for m in moments]).exp()  # the geometric mean over all pixels
    print(f"p = {p:2}" + "".join(f"{float(f'{n:.2g}'):8.0f}" for n in sources[p]))  # two digits
assert (torch.stack(list(sources.values())).diff(dim=0) < 0).all()

# %% tags=["claim"] claim="04-nearest-window-to-mean-colour"
told, few, x = (1e-5, 0.1, 0.3, 1.0, 1e5), garments[:30], unseen[[119]]
y = (x + 0.3 * noise(x.shape).float()).expand(len(told), -1, -1, -1)  # one y, five noise levels
ends = le.LocalEquivariantMMSE(few, Id, patch_size=5)(y, sigma=torch.tensor(told)).mean
windows, centres = partial(le.patches.extract_patches, patch_size=5), le.patches.centre_pixels(few).flatten()
nearest = torch.cdist(windows(y[:1])[0], windows(few).flatten(0, 1)).argmin(1)
torch.testing.assert_close(ends[0].flatten(), centres[nearest], atol=1e-5, rtol=0)
torch.testing.assert_close(ends[-1], few.mean().expand(1, 28, 28), atol=1e-4, rtol=0)
above = le.figures.show({"x": x, "y": y[0]} | {f"told σ = {s:g}": m for s, m in zip(told, ends)}, columns=7, size=112)
figure = le.figures.figure(8.5, 3.0)
axes = figure.add_subplot(xlabel="noise level σ", ylabel="effective sources, of 9800")
for p, curve in sources.items():
    axes.loglog(sigmas, curve, "o-", markersize=4, label=f"p = {p}")
axes.legend()
le.figures.stack([above.figure, figure], alt=f"{above.alt} Below, sources rise with σ, and larger windows have fewer.")

# %% [markdown] tags=["predict"]
# Above, $y$ was made with $\sigma=0.3$. Told nearly 0, each pixel is the centre of the nearest window, noise and all;
# told a huge $\sigma$, the mean of all pixels, one grey. Below, told the truth: a larger window is a sharper question,
# for which fewer windows pass as an answer.
#
# ## Deconvolution: now B matters
#
# For 03 all invertible convolutions $B$ were alike: what one does, the network can undo. Small windows cannot, for the
# undoing reaches beyond them.
#
# **Predict.** A blur, windows of $3\times3$. Should the network see $y$, or $A^+y$ (sharp, in a storm of noise), or
# Tikhonov's compromise $(A^\top A+\sigma^2)^{-1}A^\top y$? At which noise level?

# %% tags=["claim"] claim="04-physics-aware-is-not-always-better"
# NBVAL_CHECK_OUTPUT
A, sigmas = le.Blur(le.optics.gaussian_psf(1.0, size=7)), (0.003, 0.01, 0.03, 0.1, 0.3)
x = torch.cat([small[:4], small_unseen[4:10]])  # four training images, six unseen ones
e, phi, errors, alike = noise(*x.shape).float(), {}, {}, {}
for name, B in {"Id": lambda s: None, "A⁺": lambda s: A_plus(A), "Tikhonov": lambda s: le.Tikhonov(A, s**2)}.items():
    phi[name] = {s: le.LocalEquivariantMMSE(small, A, patch_size=3, pre_inverse=B(s)) for s in sigmas}
    squares = torch.stack([phi_s(A.A(x) + s * e, sigma=s).mean - x for s, phi_s in phi[name].items()]).square()
    errors[name] = [part.mean((1, 2, 3, 4)).sqrt() for part in squares.split([4, 6], 1)]  # training, unseen
    alike[name] = [le.explain.discrimination_map(p, x[[9]], sigma=s).confusable[0] for s, p in phi[name].items()]
    quiet = (phi[name][0.003](A.A(x[4:]), sigma=1e-3).mean - x[4:]).square().mean().sqrt()
    print(f"{name:8}: error" + "".join(f"{r:5.2f}" for r in errors[name][1]) + f"; without noise {quiet:.2f}")
loudest, gain = A.gram_symbol(14, 14).min().rsqrt(), errors["Id"][1] / errors["A⁺"][1]
print(f"A⁺ multiplies one frequency by {loudest:.0f}")
assert gain[0] > 1.2 and gain[3] < 0.8 and (errors["Id"][0] < errors["A⁺"][0]).all()


# %%
def curves(axes, at, errors, **style):
    axes.plot(at, errors[1], "o-", **style)  # unseen images
    axes.plot(at, errors[0], ":", color=style["color"])  # training images


figure, amplified = le.figures.figure(8.5, 2.9), le.explain.amplification_map(phi["A⁺"][0.1])
(left, right), maps = figure.subplots(1, 2), {"A⁺: amplification": le.figures.HeatMap(amplified, low=0, high=2)}
for name, colour in zip(errors, le.figures.COLOURS):
    curves(left, sigmas, errors[name], color=colour, label=f"B = {name}")
    right.plot(sigmas, [share.mean() for share in alike[name]], "o-", color=colour)
    maps[f"{name}: look alike"] = le.figures.HeatMap(alike[name][3], low=0, high=1)
scales = {"xscale": "log", "yscale": "log", "xlabel": "noise level σ"}
left.set(title="error on unseen images (dotted: training images)", ylim=(0.01, 1.3), **scales)
right.set(title="share of windows that look alike", ylim=(1e-3, 1.3), **scales)
left.legend()
below = le.figures.show(maps, size=196)
le.figures.stack([figure, below.figure], alt=f"A⁺ is best for small σ, worst for large. Maps at σ = 0.1: {below.alt}")

# %% [markdown]
# For training images $y$ beats $A^+y$ at every noise level. For unseen ones $A^+$ wins where there is little noise, and
# loses where there is more. Why? The whitened distance of two windows is
#
# $$\eta=\|Q_n^+\Delta+Q_n^+Q_{n'}e\|,\qquad\Delta=Q_{n'}A\bar x-Q_nAx_d:$$
#
# *discrimination* plus *noise*. $A^+$ multiplies one frequency by 5000, yet the map of the amplification says 1
# everywhere: whitening cancels what a convolution does to noise. What is left is discrimination, and it has two sides.
# With $A^+$, windows that look alike *are* alike, as $\Delta$ compares sharp images: without noise both inverses err
# less than $B=\mathrm{Id}$. But little in these windows rises above noise, so that soon all look alike:
# $\|Q_n^+\Delta\|^2<2\sigma^2\ln DN$ (the other maps, for a boot).
#
# Only windows as large as the image forget $B$, as below. Then try other operators: where does $B=\mathrm{Id}$ win?

# %% tags=["claim"] claim="04-only-whole-windows-forget-the-inverse"
# NBVAL_CHECK_OUTPUT
odd, A = small[:20, :, :13, :13].double(), le.Blur(le.optics.gaussian_psf(0.7, size=5))
y, change = A.A(odd[:1]) + 0.2 * noise(1, 1, 13, 13), {}
for p in (1, 3, 7, 13):
    both = [le.LocalEquivariantMMSE(odd, A, p, pre_inverse=B)(y, sigma=0.2).mean for B in (None, A_plus(A))]
    change[p] = (both[1] - both[0]).abs().max().item()
    print(f"p = {p:2}: with A⁺ instead of Id the estimate changes by up to {change[p]:.2f}")
assert min(change[1], change[3], change[7]) > 0.01 and change[13] < 1e-9
assert amplified.sub(1).abs().max() < 1e-9  # the first map above

# %% tags=["explorable"]
le.ui.explorables.locality_and_inpainting.price_of_a_pre_inverse()

# %% [markdown] tags=["predict"]
# ## Inpainting: who may speak?
#
# Let $A$ be a mask and $B=A^+$, which blackens the holes. Then $\operatorname{Im}Q_n$ are the windows that are black
# where the mask hides: the stratum of a pixel holds all pixels *with the same visible pattern* around them.
#
# **Predict.** In 400 pixels, how many see the pattern of row 5, column 9, in windows of $3\times3$? And who wins,
# $A^+$, which knows the mask but may hear few witnesses, or $B=\mathrm{Id}$, where *all* windows may speak, but noise
# in a hole passes for a measurement of black?

# %% tags=["claim"] claim="04-same-visible-pattern"
lattice = torch.zeros(20, 20)
lattice[::2, ::2] = 1
masks = {"hole": le.center_mask(20, 20, side=9), "stripes": le.stripe_mask(20, 20, period=5), "lattice": lattice}
masks["random"] = le.random_mask(20, 20, keep=0.5, generator=torch.Generator().manual_seed(0))
figure, orange = le.figures.figure(9.0, 2.5), torch.tensor([230, 159, 0]) / 255
for axes, (name, mask) in zip(figure.subplots(1, 4), masks.items()):
    hide, patterns = le.Inpainting(mask), mask.flatten()[le.patches.window_index(20, 20, 3)]
    phi = le.LocalEquivariantMMSE(torch.zeros(1, 1, 20, 20), hide, patch_size=3, pre_inverse=A_plus(hide))
    stratum = next(stratum.pixels for stratum in phi.strata if 109 in stratum.pixels)
    same = (patterns == patterns[109]).all(1)
    assert stratum.equal(same.nonzero().flatten())
    axes.imshow(torch.where(same.view(20, 20, 1), orange, (0.3 + 0.65 * mask)[..., None]))
    axes.plot([7.5, 10.5, 10.5, 7.5, 7.5], [3.5, 3.5, 6.5, 6.5, 3.5], linewidth=2.5)
    axes.set(title=f"{name}: {len(stratum)} alike", xticks=[], yticks=[])
le.figures.picture(figure, alt="Four masks; marked is a window, and in orange the pixels that see the same pattern.")

# %% tags=["claim"] claim="04-aware-wins-training-not-always-tests"
# NBVAL_CHECK_OUTPUT
counts, errors = (3, 6, 12, 25, 50), {}
x, e = torch.cat([small[:3], small_unseen[:15]]), noise(18, 1, 14, 14).float()
masks = {"stripes": le.stripe_mask(14, 14, period=7, width=4)}
masks["random"] = le.random_mask(14, 14, keep=0.5, generator=torch.Generator().manual_seed(0))
for name, mask in masks.items():
    hide = le.Inpainting(mask)
    for B in (None, A_plus(hide)):
        phi = [le.LocalEquivariantMMSE(small[:D], hide, patch_size=5, pre_inverse=B) for D in counts]
        squares = torch.stack([phi_D(hide.A(x) + 0.3 * e, sigma=0.3).mean - x for phi_D in phi]).square()
        errors[name, "A⁺" if B else "Id"] = [part.mean((1, 2, 3, 4)).sqrt() for part in squares.split([3, 15], 1)]
    gain = [a / b for a, b in zip(errors[name, "Id"], errors[name, "A⁺"])]
    print(f"{name:7}: error with Id / with A⁺, unseen", *(f"{g:.2f}" for g in gain[1]))
    assert (gain[0] > 1).all() and gain[1][-1] > 1.05 and (gain[1][0] > 0.9) == (name == "stripes")

# %% [markdown] tags=["predict"]
# A lattice leaves a pixel a quarter of all windows to learn from, a random mask nearly none. On training images $A^+$
# always wins: whoever knows where the holes are can draw noise for them himself. On unseen ones, behind a random mask,
# three images are too few witnesses (below, left).
#
# **Predict.** If a hole is wider than the window, some windows see nothing at all. What stands in the middle?

# %% tags=["claim"] claim="04-blind-windows-share-one-colour"
figure = le.figures.figure(9.2, 2.7)
for axes, name in zip(figure.subplots(1, 2, sharey=True), ("random", "stripes")):
    for B, colour in zip(("Id", "A⁺"), le.figures.COLOURS):
        curves(axes, counts, errors[name, B], color=colour, label=f"B = {B}")
    axes.set(xticks=counts, xlabel="training images D", title=f"{name}: error (dotted: training images)")
axes.legend()
hide, x, few = le.Inpainting(le.center_mask(28, 28, side=13)), unseen[[120]], garments[:50]
y = hide.A(x) + 0.1 * noise(x.shape).float()
shown = {"x": x, "y": y, "B = Id, p = 5": le.LocalEquivariantMMSE(few, hide, patch_size=5)(y, sigma=0.1).mean}
for p in (5, 9, 15):
    phi = le.LocalEquivariantMMSE(few, hide, patch_size=p, pre_inverse=A_plus(hide))
    x_hat, blind = phi(y, sigma=0.1).mean, phi.ranks == 0
    shown[f"B = A⁺, p = {p}"] = x_hat
    assert (x_hat[..., blind] - few[..., blind].mean()).abs().sum() < 1e-3 and blind.sum() == max(0, 14 - p) ** 2
le.figures.stack([figure, le.figures.show(shown).figure], alt="The blind middle is one grey, small if p is large.")

# %% tags=["explorable"]
le.ui.explorables.locality_and_inpainting.painted_hole()

# %% [markdown]
# Windows that see nothing (rank 0) share *one* colour, the mean of what training images hold there, whatever was
# measured: a grey square of side $13-(p-1)$, gone once the window is wider than the hole. $B=\mathrm{Id}$ takes the
# hole for a black cloth.
#
# ## What we saw
#
# * A CNN whose pixels see $p\times p$ windows should average the *centres* of training windows: a patchwork that no
#   mixture of training images, or of their shifts, could be.
# * $B$ decides what a window tells. Knowing the physics helps where windows that look alike are alike, and hurts where
#   too many look alike, or too few may speak.
# * Behind a mask, $A^+$ compares only windows with the same visible pattern; where nothing is visible stands one
#   colour.
#
# ## Where this stands in the paper
#
# The third and last estimator of arXiv 2601.10334, its main result; S5 and S6 in the package's docstrings. For
# denoising it is the local score of Kamb and Ganguli (arXiv 2412.20292). The strata are needed wherever ranks vary
# (S5.2). Next, in 05: does a
# *trained* CNN paint this patchwork?
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="04-window-of-a-network" minutes=3
# ### Exercise 1: how far does it see?
#
# A network has four circular convolutions, with kernels of $3\times3$, $3\times3$, $5\times5$ and $1\times1$, on images
# of $64\times64$ pixels. On how many input pixels does one output pixel depend?
#
# <details><summary>Hint</summary>
#
# A kernel of side $k$ widens the window by $k-1$.
#
# </details>

# %% tags=["exercise"] exercise="04-window-of-a-network" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
from lemmse.exercises import Exercise

exercise = Exercise(
    "04-window-of-a-network",
    expected=81,
    mistakes={
        "That is the side of the window; how many pixels does it hold?": 9,
        "Sides do not add: each kernel adds its side less 1, to the one pixel that one starts from.": 144,
        "The window starts from one pixel, not from none.": 64,
        "That is the largest kernel alone; the others widen the window.": 25,
        "Those are the weights of all kernels: overlapping paths are counted twice.": 44,
        "Sides do not multiply.": 45**2,
    },
    why="The side is 1 + 2 + 2 + 4 + 0 = 9.",
)

# %% tags=["exercise"] exercise="04-window-of-a-network"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="04-window-of-a-network"
# <details><summary>Solution</summary>
#
# ```python
# answer = (1 + 2 + 2 + 4 + 0) ** 2
# ```
# Each layer lets a pixel see $(k-1)/2$ further to every side.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="04-window-of-a-network"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = (3 + 3 + 5 + 1) ** 2
# ```
# adds sides. And
#
# ```python
# answer = 9
# ```
# is the side, not the number of pixels.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="04-nearest-window" minutes=8
# ### Exercise 2: no noise
#
# Write `patchwork(y, x)`: what the denoiser with $3\times3$ windows makes of `y`, (h, w), for $\sigma\to0$, if `x`, (h,
# w), is the only training image. `windows(x)`, (h w, 9), gives the circular windows of an image, row by row.
#
# <details><summary>Hint</summary>
#
# `torch.cdist(a, b)` compares all rows of `a` with all of `b`. What stands in the middle of a row of nine?
#
# </details>

# %% tags=["exercise"] exercise="04-nearest-window" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import torch

from lemmse.exercises import Exercise


def windows(x):
    """Return the circular 3 × 3 windows (h w, 9) of an image (h, w), row by row."""
    return torch.stack([x.roll((-i, -j), (0, 1)).flatten() for i in (-1, 0, 1) for j in (-1, 0, 1)], 1)


def nearest(y, x):
    """Return which window of x is nearest to each window of y."""
    return torch.cdist(windows(y), windows(x)).argmin(1)


draw = torch.Generator().manual_seed(0)
exercise = Exercise(
    "04-nearest-window",
    expected=lambda y, x: x.flatten()[nearest(y, x)].view(y.shape),
    inputs=[tuple(torch.rand(2, 4, 5, generator=draw)), tuple(torch.rand(2, 6, 3, generator=draw))],
    mistakes={
        "That is the mean of the nearest window; the answer is its centre.": (
            lambda y, x: windows(x)[nearest(y, x)].mean(1).view(y.shape)
        ),
        "That is the corner of the nearest window: the centre is entry 4 of 9.": (
            lambda y, x: windows(x)[nearest(y, x)][:, 0].view(y.shape)
        ),
        "Those are the windows of y that are nearest to windows of x: mind the order.": (
            lambda y, x: x.flatten()[nearest(x, y)].view(y.shape)
        ),
        "That takes colours from y itself; they come from the training image.": (
            lambda y, x: y.flatten()[nearest(y, x)].view(y.shape)
        ),
        "That compares pixels, as a window of 1 × 1 would.": (
            lambda y, x: x.flatten()[torch.cdist(y.reshape(-1, 1), x.reshape(-1, 1)).argmin(1)].view(y.shape)
        ),
        "That is the training image: windows may come from any place.": lambda y, x: x,
    },
    why="The nearest window takes all the weight, and only its centre counts.",
)


# %% tags=["exercise"] exercise="04-nearest-window"
def patchwork(y, x):
    return ...


exercise.check(patchwork)

# %% [markdown] tags=["solution"] exercise="04-nearest-window"
# <details><summary>Solution</summary>
#
# ```python
# def patchwork(y, x):
#     nearest = torch.cdist(windows(y), windows(x)).argmin(1)
#     return x.flatten()[nearest].view(y.shape)
# ```
# Windows come in the order of the pixels at their centres.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="04-nearest-window"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def patchwork(y, x):
#     return windows(x)[torch.cdist(windows(y), windows(x)).argmin(1)].mean(1).view(y.shape)
# ```
# blurs: the rest of the window only helps to find it. And
#
# ```python
# def patchwork(y, x):
#     return x.flatten()[(windows(y)[:, 4:5] - x.flatten()).abs().argmin(1)].view(y.shape)
# ```
# looks at the pixel alone.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="04-witnesses" minutes=5
# ### Exercise 3: how many witnesses?
#
# Images have $12\times16$ pixels, and a mask hides every fourth column. $B=A^+$, windows of $3\times3$, 100 training
# images. Over how many training pixels does the estimate of one pixel average, at most?
#
# <details><summary>Hint</summary>
#
# Which windows see the same columns?
#
# </details>

# %% tags=["exercise"] exercise="04-witnesses" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "04-witnesses",
    expected=4800,
    mistakes={
        "All windows may speak with B = Id; A⁺ admits those with the same visible pattern.": 19200,
        "That is the stratum in one image; there are 100 of them.": 48,
        "Rows are free, but so are shifts by four columns: the mask has that period.": 1200,
        "Columns may shift by four, but rows are free as well.": 400,
        "Windows may come from other places, as long as they see the same pattern.": 100,
        "Of the windows that see a hidden column, some have it at the left, some in the middle, some right.": 14400,
        "Half of the windows see a hidden column at one side, but at the left and at the right are two patterns.": 9600,
    },
    why="Four patterns share the 192 pixels equally: 48 pixels in each of 100 images.",
)

# %% tags=["exercise"] exercise="04-witnesses"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="04-witnesses"
# <details><summary>Solution</summary>
#
# ```python
# answer = 100 * 12 * 16 // 4
# ```
# The hidden column stands at the left, in the middle, at the right, or outside of the window: four strata of equal
# size.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="04-witnesses"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = 100 * 12 * 16
# ```
# lets windows speak that see something else. And
#
# ```python
# answer = 100
# ```
# thinks that only the same place may speak.
#
# </details>
