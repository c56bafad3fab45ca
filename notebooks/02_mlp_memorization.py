# %% [markdown]
# # 02 · Why should an MLP copy its training set, and does it?
#
# [Run it on Binder](https://mybinder.org/v2/gh/lemmse/lemmse/v0.1.0?urlpath=lab/tree/notebooks/02_mlp_memorization.ipynb) ·
# [run it on Colab](https://colab.research.google.com/github/lemmse/lemmse/blob/v0.1.0/notebooks/02_mlp_memorization.ipynb)
#
# Notebook 00: a perfectly trained network that can be *any* function computes the posterior mean over its training set.
# Notebook 01: how Gaussians live on planes. A multi-layer perceptron (MLP) combines all pixels at will, so it comes
# closest to "any function". **Should it copy its training images? Does it?** About 40 minutes:
#
# * [The theorem in the open](#The-theorem-in-the-open)
# * [The weights of one query](#The-weights-of-one-query)
# * [How many images speak?](#How-many-images-speak?)
# * [Copy and paste](#Copy-and-paste)
# * [The two ends](#The-two-ends)
# * [Does it help to know the physics?](#Does-it-help-to-know-the-physics?)
# * [Three corrections](#Three-corrections)
# * [Does a real MLP do it?](#Does-a-real-MLP-do-it?)
# * [A larger MLP, trained for longer](#A-larger-MLP,-trained-for-longer)
# * [In three lines](#What-we-saw), [the paper](#Where-this-stands-in-the-paper), [exercises](#Exercises)

# %%
try:
    import google.colab  # noqa: F401 (only there)

    # %pip install --quiet "lemmse[widgets] @ git+https://github.com/lemmse/lemmse@v0.1.0"
except ImportError:
    pass  # everywhere else the package is installed already

# %% [markdown]
# ## The theorem in the open
#
# A network need not be shown $y=A\bar x+e$ itself. It is shown $v=By$: perhaps $A^\top y$, perhaps $A^+y$, perhaps $y$
# ($B=\mathrm{Id}$). Had the image been $x_d$, then $v$ would follow $\mathcal N(BAx_d,\sigma^2BB^\top)$. All $D$
# Gaussians have one support, $\operatorname{Im}B$, and one pseudo-determinant: none outranks another, constants cancel,
# and Bayes' rule gives the function of $v$ with the smallest training loss,
#
# $$\hat x=\sum_dw_dx_d,\qquad w_d\propto\exp\Big(-\frac{1}{2\sigma^2}\,\|By-BAx_d\|^2_{(BB^\top)^+}\Big),\qquad
# \|u\|_M^2=u^\top Mu.$$

# %%
import math
from functools import partial

import torch
from torch import nn

import lemmse as le


def theorem(images, A, B, y, sigma):
    """Return the best function of v = B y, and its weights, for dense matrices A and B."""
    x = images.flatten(1)  # D rows
    residuals = B @ y - x @ A.T @ B.T
    metric = torch.linalg.pinv(B @ B.T, hermitian=True, rtol=1e-10)
    squared_norms = torch.einsum("di,ij,dj->d", residuals, metric, residuals)
    weights = torch.softmax(-squared_norms / (2 * sigma**2), dim=0)
    return weights @ x, weights


# %% tags=["claim"] claim="02-package-agrees-with-theorem"
# NBVAL_CHECK_OUTPUT
noise = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
images, unseen = le.data.fashion_mnist("train", count=2000).double(), le.data.fashion_mnist("test", count=200).double()
tiny = nn.functional.avg_pool2d(images, 4)[:6]  # six images of 7 × 7 pixels
hide, sigma = le.Inpainting(le.half_mask(7, 7)), 0.5
B = noise(20, 12) @ noise(12, 49)  # any B: this one makes 20 numbers of 49, and has rank 12
y = hide.A(tiny[:1]) + sigma * noise(1, 1, 7, 7)
problem = tiny, le.operators.dense_matrix(hide, (1, 7, 7)), B, y.flatten(), sigma
x_hat, weights = theorem(*problem)
package = le.MMSE(tiny, hide, pre_inverse=le.Matrix(B, (1, 7, 7), (20,)))
torch.testing.assert_close(package(y, sigma=sigma).mean.flatten(), x_hat, atol=1e-10, rtol=0)
print("weights:", [round(w, 3) for w in weights.tolist()])

# %% [markdown] tags=["predict"]
# The package agrees, and never forms $BB^\top$: with $\Pi=B^\top(BB^\top)^+B=B^+B$, the orthogonal projector onto
# $\operatorname{Im}B^\top$,
#
# $$w_d\propto e^{-r_d^2/2\sigma^2},\qquad r_d=\|\Pi(y-Ax_d)\|.$$
#
# It matters what $B$ lets through, not how it writes it down.
#
# ## The weights of one query
#
# From here on the training set is 2000 garments of 28 × 28 pixels. The truth is a T-shirt that is *not* among them.
#
# **Predict.** The noise is twice the step from black to white, $\sigma=2$. How many of the 2000 weights exceed one
# percent? And at $\sigma=0.1$?

# %%
# NBVAL_CHECK_OUTPUT
x, e, denoise = unseen[[120]], noise(1, 1, 28, 28), le.MMSE(images, le.Denoising())
shown, sources = {"x": x}, {}
for sigma in (2.0, 0.1):
    y = x + sigma * e
    shown |= {f"y, σ = {sigma:g}": y, f"x_hat, σ = {sigma:g}": denoise(y, sigma=sigma).mean}
    sources[sigma] = denoise(y, sigma=sigma, reduction=le.TopSources(2000))  # all of them, sorted
    weights = sources[sigma].weight[0]
    print(f"σ = {sigma:g}: {(weights > 0.01).sum()} weights over 1 %; the eight largest hold {weights[:8].sum():.0%}")
assert le.metrics.psnr(shown["y, σ = 0.1"], x) > le.metrics.psnr(shown["x_hat, σ = 0.1"], x)

# %%
figure = le.figures.figure(8.5, 4.8)
panels = figure.subplot_mosaic("wwwwwwww;abcdefgh;WWWWWWWW;ABCDEFGH", height_ratios=(1.2, 1, 1.2, 1))
for (sigma, top), bars, places in zip(sources.items(), "wW", ("abcdefgh", "ABCDEFGH")):
    panels[bars].bar(range(8), top.weight[0, :8], width=0.7)
    panels[bars].set(xlim=(-0.5, 7.5), ylim=(0, 1), xticks=[], ylabel=f"weight, σ = {sigma:g}")
    for place, image in zip(places, images[top.image[0, :8], 0]):
        panels[place].imshow(image, cmap="gray", vmin=0, vmax=1)
        panels[place].set_axis_off()
alt = "x, y and the estimate at both noise levels; below, the eight heaviest images under the bars of their weights."
le.figures.stack([le.figures.show(shown).figure, figure], alt=alt)

# %% [markdown]
# Where the eye sees nothing but noise, eight T-shirts still make three quarters of the mixture. With little noise there
# is no mixture: the number on the chest is not blurred but *replaced* by the print of another shirt, and $y$ itself is
# nearer to the truth.
#
# ## How many images speak?
#
# Count them by the *effective number of sources* $e^{H(w)}$, where $H(w)=-\sum_dw_d\ln w_d$ is the entropy: 1 if one
# image holds all the weight, $D$ if all weights are equal. For four operators, with $H$ averaged over 100 unseen
# images:

# %% tags=["claim"] claim="02-less-measured-more-sources"
# NBVAL_CHECK_OUTPUT
operators = {
    "denoising": le.Denoising(),
    "half hidden": le.Inpainting(le.half_mask(28, 28)),
    "deblurring": le.Blur(le.optics.gaussian_psf(2.0, size=13)),
    "downsampling": le.Downsampling(4, le.optics.gaussian_psf(2.0, size=13)),
}
sigmas, effective = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), {}
for name, A in operators.items():
    estimator, clean = le.MMSE(images, A), A.A(unseen[:100])
    queries = [clean + sigma * noise(*clean.shape) for sigma in sigmas]
    moments = [estimator(y, sigma=s, reduction=le.PosteriorMoments()) for y, s in zip(queries, sigmas)]
    effective[name] = torch.stack([m.entropy.mean() for m in moments]).exp()
    print(f"{name:12}" + "".join(f"{n:8.1f}" for n in effective[name].tolist()))
assert all((effective["denoising"] <= n).all() and (n <= effective["downsampling"]).all() for n in effective.values())

# %% [markdown]
# The less is measured, the sooner the weights spread. But up to some noise, one image speaks alone.
#
# ## Copy and paste
#
# Sort the residuals: $r_1\le r_2\le\dots$ Since $w_d/w_1=e^{-(r_d^2-r_1^2)/2\sigma^2}$, the rivals together weigh at most
# $D-1$ times as much as the runner-up,
#
# $$1-w_1\le(D-1)\,e^{-g},\qquad g=\frac{r_2^2-r_1^2}{2\sigma^2}.$$
#
# So $w_1\ge1-\delta$ once $r_2^2-r_1^2\ge2\sigma^2\ln(D/\delta)$. The number of images enters through its *logarithm*. And
# an identity says what mixing costs: $\sum_dw_dr_d^2=r_1^2+2\sigma^2\,(H(w)+\ln w_1)$. Both, on all 200 unseen images:

# %% tags=["claim"] claim="02-gap-decides-copying"
# NBVAL_CHECK_OUTPUT
gap, rest = {}, {}
for sigma in (1.0, 0.3, 0.1):
    y = unseen + sigma * noise(*unseen.shape)
    r2 = torch.cdist(y.flatten(1), images.flatten(1)).square().sort(dim=1).values
    moments = denoise(y, sigma=sigma, reduction=le.PosteriorMoments())
    gap[sigma], rest[sigma] = (r2[:, 1] - r2[:, 0]) / (2 * sigma**2), 1 - moments.log_max_weight.exp()
    lower, upper = torch.sigmoid(-gap[sigma]), 1999 * torch.exp(-gap[sigma])
    assert ((lower - 1e-12 < rest[sigma]) & (rest[sigma] < upper + 1e-12)).all()
    mixing = 2 * sigma**2 * (moments.entropy + moments.log_max_weight)
    torch.testing.assert_close(moments.mean_squared_residual, r2[:, 0] + mixing)
    copies, crowded = rest[sigma] < 0.01, rest[sigma] > 1.5 * lower + 1e-12
    print(f"σ = {sigma:g}: {copies.double().mean():.0%} copies (a weight over 99 %),", end=" ")
    print(f"{crowded.double().mean():.0%} with 1 − w₁ over 1.5 times what the runner-up alone makes")

# %%
figure, g = le.figures.figure(7.2, 3.4), torch.linspace(0, 30, 100)
axes = figure.add_subplot()
for sigma in gap:
    axes.semilogy(gap[sigma], rest[sigma], ".", label=f"σ = {sigma:g}")
axes.semilogy(g, 1999 * torch.exp(-g), color="black", label="all rivals as near\nas the runner-up")
axes.semilogy(g, torch.sigmoid(-g), color="black", linestyle=":", label="the runner-up alone")
axes.axvline(math.log(2000 / 0.01), color="grey", linewidth=1)
axes.set(xlim=(0, 30), ylim=(1e-12, 3), xlabel="gap g", ylabel="1 − w₁")
axes.legend(loc="lower left")
le.figures.picture(figure, alt="Queries lie between two falling lines: for σ ≤ 0.3 by the lower one.")

# %% [markdown] tags=["predict"]
# For $\sigma\le0.3$ nearly all queries keep to the lower line: the runner-up is the only rival. At $\sigma=1$ most leave
# it, as several rivals share the rest. Right of the grey line at $\ln(D/\delta)$, with $\delta=1\,\%$, copying is certain
# whatever the others do.
#
# ## The two ends
#
# **Predict.** Keep one $y$, drawn with $\sigma=2$, and tell the estimator another $\sigma$: nearly 0, or huge. What does
# it answer? Then move the slider: at which $\sigma$ does the copy dissolve, and does it matter how many images there are?

# %% tags=["claim"] claim="02-limits-nearest-and-mean"
told = (1e-6, 1.0, 2.0, 4.0, 8.0, 1e6)
y = (x + 2.0 * e).expand(len(told), -1, -1, -1)  # one y, six noise levels
ends = denoise(y, sigma=torch.tensor(told), reduction=le.PosteriorMoments())
torch.testing.assert_close(ends.mean[0], images[(images - y[0]).flatten(1).norm(dim=1).argmin()])
torch.testing.assert_close(ends.mean[-1], images.mean(0), atol=1e-9, rtol=0)
assert (ends.entropy.diff() >= 0).all()  # for a fixed y, more noise never means fewer sources
le.figures.show({f"told σ = {s:g}": image for s, image in zip(told, ends.mean)})

# %% tags=["explorable"]
le.ui.explorables.mlp_memorization.mlp_memorization()

# %% [markdown] tags=["predict"]
# From the nearest image to the mean of all 2000, and never beyond: a weighted mean stays in the convex hull of the
# training set.
#
# ## Does it help to know the physics?
#
# If $\operatorname{Im}A\subseteq\operatorname{Im}B^\top$, then $\|\Pi(y-Ax_d)\|^2=\|y-Ax_d\|^2-\|y-\Pi y\|^2$. All images
# lose the same, so the weights are those of $B=\mathrm{Id}$. This covers $A^\top$, $A^+$ and Tikhonov's inverse: a network
# without constraints gains nothing from knowing the physics, and loses nothing.
#
# **Predict.** The right half is hidden, so there $y$ is pure noise. $A^+$ erases it; another $B$ *folds* it onto the left
# half, adding the two. Neither loses anything of $Ax$. Which changes the estimate?

# %% tags=["claim"] claim="02-aware-equals-agnostic"
A, fold = operators["half hidden"], torch.kron(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.eye(14))
pre_inverses = {"Id": None, "Aᵀ": le.Adjoint(A), "A⁺": le.PseudoInverse(A), "Tikhonov": le.Tikhonov(A, weight=0.1)}
pre_inverses["fold"] = le.Matrix(torch.kron(torch.eye(28), fold), (1, 28, 28), (1, 28, 28))
pre_inverses["random"] = le.Matrix(noise(100, 784), (1, 28, 28), (100,))
assert le.operators.rank(le.Compose(pre_inverses["fold"], A), (1, 28, 28)) == le.operators.rank(A, (1, 28, 28))
y, answer = A.A(x) + e, {}
for name, B in pre_inverses.items():
    answer[name] = le.MMSE(images, A, pre_inverse=B)(y, sigma=1.0, reduction=le.PosteriorMoments())
    change = (answer[name].mean - answer["Id"].mean).abs().max().item()
    print(f"B = {name:8}: {answer[name].entropy.exp().item():5.1f} sources, a change of up to {change:.2f}")
    assert change < 1e-10 or name in ("fold", "random")
x_hat = answer["Id"].mean
maps = {f"change, {name}": le.figures.SignedMap(answer[name].mean - x_hat, limit=0.3) for name in ("A⁺", "fold")}
le.figures.show({"y": y, "x_hat, B = Id": x_hat} | maps)

# %% [markdown]
# The fold hides no image, but it stirs noise into the visible half: $\operatorname{Im}A\not\subseteq
# \operatorname{Im}B^\top$.
#
# ## Three corrections
#
# Three tempting ways to write the formula are wrong: (1) the norm as $\|\cdot\|_{BB^\top}$, without the pseudo-inverse;
# (2) $\Pi$ as the projector onto $\operatorname{Im}B$, not $\operatorname{Im}B^\top$; (3) a denominator that sums over $d'$
# terms which contain $x_d$. And (2) has a twin, (2b): that of the noise, $AA^+y$ keeps the part in $(\ker A)^\perp$; it
# keeps the part in $\operatorname{Im}A$. What do they answer about the six tiny images? First (1), in two units of $v$,
# and (3); then (2), with a square $B$, and (2b).

# %% tags=["claim"] claim="02-norm-and-normaliser"
# NBVAL_CHECK_OUTPUT
tiny, A, B, y, sigma = problem
residuals = y - tiny.flatten(1) @ A.T
w = {f"theorem, B × {unit:4}": theorem(tiny, A, unit * B, y, sigma)[1] for unit in (1, 0.02)}
for unit in (1, 0.02):  # the squared norm of u with the matrix BBᵀ is ‖Bᵀu‖²
    squared_norms = (unit**2 * residuals @ B.T @ B).square().sum(1)
    w[f"slip (1), B × {unit:4}"] = torch.softmax(-squared_norms / (2 * sigma**2), dim=0)
each = torch.exp(-residuals.square().sum(1) / (2 * sigma**2))
w["slip (3)"] = each / torch.stack([each for _ in tiny]).sum(0)  # nothing depends on d'
for name, weights in w.items():
    print(f"{name:20}", *(f"{v:.3f}" for v in weights.tolist()))
assert torch.allclose(w["theorem, B ×    1"], w["theorem, B × 0.02"]) and w["slip (3)"].std() < 1e-12
assert (w["slip (1), B ×    1"] - w["slip (1), B × 0.02"]).abs().max() > 0.5

# %% tags=["claim"] claim="02-projector-in-measurement-space"
# NBVAL_CHECK_OUTPUT
square, pinv, eye = noise(49, 12) @ noise(12, 49), partial(torch.linalg.pinv, rtol=1e-10), torch.eye(7).double()
right = theorem(tiny, A, square, y, sigma)[1]
for name, P in {"Im Bᵀ": pinv(square) @ square, "Im B": square @ pinv(square)}.items():
    wrong_by = (torch.softmax(-(residuals @ P).square().sum(1) / (2 * sigma**2), dim=0) - right).abs().max().item()
    print(f"projector onto {name}: weights wrong by up to {wrong_by:.2f}")
    assert (wrong_by < 1e-8) == (name == "Im Bᵀ")
moves, e_tiny = torch.kron(eye, eye.roll(4, 0).tril(-4)), noise(49)  # the left three columns go to the right
for name, A in {"hides": problem[1], "moves": moves}.items():
    kept = A @ pinv(A) @ (A @ tiny[0].flatten() + e_tiny) - A @ tiny[0].flatten()
    wrong_by = (pinv(A) @ A @ e_tiny - kept).norm().item()
    print(f"A {name}: noise kept {kept.norm():.2f}, slip (2b) is wrong by {wrong_by:.2f}")
    assert (wrong_by < 1e-8) == (name == "hides")

# %% [markdown] tags=["predict"]
# The theorem does not mind the units of $v$; (1) answers what they dictate; (3) weighs all alike and always answers the
# mean. (2) and (2b) do no harm to symmetric matrices, such as masks, but to those that move what they see.
#
# ## Does a real MLP do it?
#
# A fourth, (4), is a "therefore": MLPs approximate every continuous function, the data are finite, *therefore* they
# memorise. The theorem says where the training loss is smallest, not that training arrives there. So we try: 7 × 7
# pixels, noise $\sigma=0.1$ drawn afresh in every step, and always the same number of steps.
#
# **Predict.** With 8, 64 and 512 training images: when does the network copy? And what is nearest to an *unseen* image:
# the network's answer, the formula's, or $y$ itself?


# %%
def train(x, sigma=0.1, steps=600):
    """Train an MLP to denoise images of 7 × 7 pixels, and return it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(49, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 49))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.003, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        clean = x[torch.randint(len(x), (32,))].flatten(1)
        optimiser.zero_grad()
        (network(clean + sigma * torch.randn_like(clean)) - clean).square().mean().backward()
        optimiser.step()
        schedule.step()
    return lambda y: network(y.flatten(1)).detach().view_as(y)


# %%
# NBVAL_CHECK_OUTPUT
torch.set_num_threads(1)  # with layers this small, threads only wait for one another
small, small_unseen = (nn.functional.avg_pool2d(z, 4).float() for z in (images, unseen))
sizes, psnr, row = (8, 64, 512), {}, {"x": small_unseen[[120]]}
for D in sizes:
    network, formula = train(small[:D]), le.MMSE(small[:D], le.Denoising())
    for kind, x in {"training": small[torch.arange(200) % D], "unseen": small_unseen}.items():
        y = x + 0.1 * noise(*x.shape).float()
        answers = {"y": y, "formula": formula(y, sigma=0.1).mean, "network": network(y)}
        psnr[kind, D] = le.metrics.psnr(answers["network"], answers["formula"]).mean()
        loss = {who: (answer - x).square().mean().item() for who, answer in answers.items()}
        print(f"D = {D}: nearest to {kind} images is", min(loss, key=loss.get))
    psnr |= {(who, D): le.metrics.psnr(answer, x).mean() for who, answer in answers.items()}
    row |= {f"{who}, D = {D}": answers[who][[120]] for who in ("formula", "network") if D != 64}

# %% [markdown]
# Above, one unseen T-shirt. Below, how near the network comes to the formula (left), and all to an unseen image (right).

# %% tags=["claim"] claim="02-mlp-copies-few-images-not-many"
figure = le.figures.figure(8.5, 3.0)
left, right = figure.subplots(1, 2)
for axes, names in ((left, ("training", "unseen")), (right, ("y", "formula", "network"))):
    for name in names:
        axes.semilogx(sizes, [psnr[name, D] for D in sizes], "o-", label=name)
    axes.set(xticks=sizes, xticklabels=sizes, xlabel="training images D")
    axes.legend()
left.set_ylabel("PSNR network to formula, dB")
right.set_ylabel("PSNR to the unseen image, dB")
assert psnr["training", 8] > 33 > 31 > psnr["training", 64] > 26 and psnr["training", 512] < 28  # it copies 8
assert all(psnr["network", D] > psnr["formula", D] + 2 for D in (64, 512))
alt = "With more images the network leaves the formula, and comes nearer than it to unseen images."
le.figures.stack([le.figures.show(row).figure, figure], alt=alt)

# %% [markdown]
# With 8 images the network copies: on the training images it agrees with the formula to more than 33 dB. With 512, after
# as many steps, it does not (below 28 dB); with 64 it is on its way. In its training loss the formula wins every time; on
# unseen images, with 64 as with 512, the network is better by more than 2 dB: it has become a denoiser.
#
# ## A larger MLP, trained for longer
#
# Would more weights and steps get there? An MLP that ships with the package learnt from 1000 garments of 28 × 28
# pixels. Its card, in dB, by noise level:

# %% tags=["claim"] claim="02-larger-mlp-does-not-copy-many-either"
# NBVAL_CHECK_OUTPUT
larger, card = le.pretrained.load("fashion_mnist-denoising-GlobalMLP")
print(f"{'noise level':27}", *(f"{sigma:>6}" for sigma in card.psnr["test"]))
for split, kind in {"train": "training", "test": "unseen"}.items():
    truth = card.psnr_to_truth[split]
    pairs = {"network to formula": card.psnr[split], "network to truth": truth["network"]}
    for pair, row in (pairs | {"formula to truth": truth["formula"]}).items():
        print(f"{kind:8} {pair:18}", *(f"{db:6.1f}" for db in row.values()))
assert min(card.psnr_to_truth["train"]["formula"].values()) > 80  # the formula copies all training images
lead = [truth["network"][s] - card.psnr["test"][s] for s in truth["network"]]  # of the unseen truth over the formula
assert lead[0] > 5 > lead[-1] + 3 and lead == sorted(lead, reverse=True)
assert all(abs(card.psnr_to_truth["train"]["network"][s] - truth["network"][s]) < 3 for s in ("0.05", "0.1"))

# %%
x, formula = torch.cat([images[[3]], unseen[[120]]]).float(), card.estimator()
shown = {"x": x}
for sigma in (0.1, 1.0):
    y = x + sigma * noise(*x.shape).float()
    with torch.no_grad():
        answers = {"formula": formula(y, sigma=sigma).mean, "network": larger(y, sigma)}
    shown |= {f"y, σ = {sigma:g}": y} | {f"{who}, {sigma:g}": answer for who, answer in answers.items()}
le.figures.show(shown)

# %% [markdown]
# On training images the formula *is* the image (150 dB stand for rounding). The network takes off some of the
# noise, from seen and unseen garments nearly alike. With little noise, unseen ones come out much nearer to the truth than
# to the formula; the more noise, the less so.
#
# ## What we saw
#
# * Free to be any function, a network should answer $\sum_dw_dx_d$, and what $B$ does matters only through the
#   projector onto $\operatorname{Im}B^\top$.
# * One image takes all the weight but $\delta$ once $r_2^2-r_1^2$ exceeds $2\sigma^2\ln(D/\delta)$: little noise means
#   copies.
# * Real MLPs copied a few images and not many: whether networks memorise is a question for experiments.
#
# ## Where this stands in the paper
#
# The first of the three estimators of arXiv 2601.10334, the one without constraints: `le.MMSE` (S3; its weights: S7). The
# paper's point is what comes next: a convolutional network is *not* free to be any function. 03 makes it treat all places
# alike, 04 lets each pixel see one window only.
#
# ## Exercises

# %% [markdown] tags=["exercise", "hint"] exercise="02-weights" minutes=5
# ### Exercise 1: weights that survive
#
# Write `weights(squared_distances, sigma)`: the posterior weights of $D$ images. It should survive distances as
# large as those of real images.
#
# <details><summary>Hint</summary>
#
# $e^{-4500}$ is zero in every floating-point format. What may be added to all exponents at once?
#
# </details>

# %% tags=["exercise"] exercise="02-weights" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 1
import torch

from lemmse.exercises import Exercise

exercise = Exercise(
    "02-weights",
    expected=lambda d2, sigma: torch.softmax(-d2 / (2 * sigma**2), dim=0),
    inputs=[(torch.tensor([1.0, 2.0, 4.0]), 1.0), (torch.tensor([90.0, 90.02, 95.0]), 0.1)],
    mistakes={
        "The exponentials vanished before they were divided. Subtract the smallest distance first, or use softmax.": (
            lambda d2, sigma: (w := torch.exp(-d2 / (2 * sigma**2))) / w.sum()
        ),
        "The exponent is divided by 2σ², not σ².": lambda d2, sigma: torch.softmax(-d2 / sigma**2, dim=0),
        "The exponent is divided by 2σ², not 2σ.": lambda d2, sigma: torch.softmax(-d2 / (2 * sigma), dim=0),
        "All weights are equal: the sum below must run over the other images too.": (
            lambda d2, sigma: torch.full_like(d2, 1 / len(d2))
        ),
        "The weights do not add up to one: divide them by their sum.": (
            lambda d2, sigma: torch.exp((d2.min() - d2) / (2 * sigma**2))
        ),
        "The weights do not add up to one, and those of large distances all vanish.": (
            lambda d2, sigma: torch.exp(-d2 / (2 * sigma**2))
        ),
        "The sign of the exponent: the nearest image should weigh most.": (
            lambda d2, sigma: torch.softmax(d2 / (2 * sigma**2), dim=0)
        ),
        "The exponent holds the squared distance, r², not r.": (
            lambda d2, sigma: torch.softmax(-d2.sqrt() / (2 * sigma**2), dim=0)
        ),
        "The distances come squared already.": lambda d2, sigma: torch.softmax(-(d2**2) / (2 * sigma**2), dim=0),
    },
    why="A common factor cancels, so the largest weight may be made e⁰ = 1 before dividing.",
)


# %% tags=["exercise"] exercise="02-weights"
def weights(squared_distances, sigma):
    return ...


exercise.check(weights)

# %% [markdown] tags=["solution"] exercise="02-weights"
# <details><summary>Solution</summary>
#
# ```python
# def weights(squared_distances, sigma):
#     unnormalised = torch.exp((squared_distances.min() - squared_distances) / (2 * sigma**2))
#     return unnormalised / unnormalised.sum()
# ```
# `torch.softmax` subtracts the largest exponent in the same way.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="02-weights"
# <details><summary>Two wrong turns</summary>
#
# ```python
# def weights(squared_distances, sigma):
#     unnormalised = torch.exp(-squared_distances / (2 * sigma**2))
#     return unnormalised / unnormalised.sum()
# ```
# divides zero by zero for the second input. And
#
# ```python
# def weights(squared_distances, sigma):
#     return torch.softmax(-squared_distances / sigma**2, dim=0)
# ```
# believes the measurement twice.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="02-copying-noise" minutes=5
# ### Exercise 2: how much noise before it stops copying?
#
# The nearest of $D=2000$ images has $r_1^2=10$, the runner-up $r_2^2=18$. Up to which $\sigma$ is $w_1\ge99\,\%$ certain,
# wherever the others are?
#
# <details><summary>Hint</summary>
#
# Solve $r_2^2-r_1^2=2\sigma^2\ln(D/\delta)$.
#
# </details>

# %% tags=["exercise"] exercise="02-copying-noise" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 2
import math

from lemmse.exercises import Exercise


def largest_sigma(gap, count, share=0.01):
    """Return the noise level up to which copying is certain."""
    return math.sqrt(gap / (2 * math.log(count / share)))


exercise = Exercise(
    "02-copying-noise",
    expected=largest_sigma(18 - 10, 2000),
    mistakes={
        "That is enough against one rival; there are 1999.": largest_sigma(18 - 10, 1),
        "That is σ²; take the root.": largest_sigma(18 - 10, 2000) ** 2,
        "The gap is that of the squares, r₂² − r₁².": largest_sigma(18**0.5 - 10**0.5, 2000),
        "A factor is missing: the exponent is divided by 2σ², not σ².": largest_sigma(2 * (18 - 10), 2000),
        "The logarithm is the natural one, not that to base 10.": math.sqrt((18 - 10) / (2 * math.log10(2000 / 0.01))),
        "That makes all rivals together as heavy as w₁ itself: δ is missing.": largest_sigma(18 - 10, 2000, 1),
    },
    why=f"With 60 000 images it is still {largest_sigma(8, 60_000):.2f}: D enters through its logarithm.",
)

# %% tags=["exercise"] exercise="02-copying-noise"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="02-copying-noise"
# <details><summary>Solution</summary>
#
# ```python
# answer = math.sqrt((18 - 10) / (2 * math.log(2000 / 0.01)))
# ```
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="02-copying-noise"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = math.sqrt((18 - 10) / (2 * math.log(1 / 0.01)))
# ```
# forgets that many rivals may stand beside the runner-up. And
#
# ```python
# answer = math.sqrt((math.sqrt(18) - math.sqrt(10)) / (2 * math.log(2000 / 0.01)))
# ```
# subtracts distances instead of their squares.
#
# </details>

# %% [markdown] tags=["exercise", "hint"] exercise="02-which-b" minutes=6
# ### Exercise 3: which $B$ matters?
#
# Only the left half of the image is measured, $y=Ax+e$ with noise on *all* pixels. Which of these $B$ change the
# estimate, compared with $B=\mathrm{Id}$? Answer with a set of numbers.
#
# 1. three times $y$
# 2. $y$ with its right half erased
# 3. $y$ with all its pixels shuffled
# 4. $y$ with its top row erased
# 5. the left half plus the mirrored right half
#
# <details><summary>Hint</summary>
#
# Two questions: does $B$ lose a part of $Ax$? And does it mix noise into it that one could have kept apart?
#
# </details>

# %% tags=["exercise"] exercise="02-which-b" jupyter={"source_hidden": true} cellView="form"
# @title The check of exercise 3
from lemmse.exercises import Exercise

exercise = Exercise(
    "02-which-b",
    expected={4, 5},
    mistakes={
        "None at all? At least one of them changes the estimate.": lambda b: len(set(b)) == 0,
        "Only the numbers 1 to 5 can be in the set.": lambda b: not {float(i) for i in b} <= {1, 2, 3, 4, 5},
        "2 erases noise only: there, all images predict the same, and it cancels.": lambda b: 2 in set(b),
        "1 and 3 can be undone, so that nothing is lost.": lambda b: bool({1, 3} & set(b)),
        "5 loses no image, but the noise of both halves is in it, and nobody can part them again.": {4},
        "4 forgets a row of what was measured.": {5},
    },
    why="The weights change unless Im A lies in Im Bᵀ.",
)

# %% tags=["exercise"] exercise="02-which-b"
answer = ...
exercise.check(answer)

# %% [markdown] tags=["solution"] exercise="02-which-b"
# <details><summary>Solution</summary>
#
# ```python
# answer = {4, 5}
# ```
# $\operatorname{Im}A$ holds all images whose right half is black. 1, 2 and 3 keep them all apart from the rest of $y$;
# 4 drops some; 5 lets through only sums of both halves.
#
# </details>

# %% [markdown] tags=["wrong-answer"] exercise="02-which-b"
# <details><summary>Two wrong turns</summary>
#
# ```python
# answer = {4}
# ```
# asks only what is lost, not what is mixed. And
#
# ```python
# answer = {2, 4, 5}
# ```
# believes that noise informs.
#
# </details>
