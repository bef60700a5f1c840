"""A simulated bandit: what choosing by uncertainty costs and gains against greedy choices.

    python -m benchmarks.exploration --seeds 1 2 3 4

Requests bring a user and ten ads; the policy shows one, and learns only whether that one was clicked. Half of
the ads are new in the middle of the run. The model is a small network, trained on what was shown; what is
known of its uncertainty comes from its last hidden layer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.channel import ROOT
from benchmarks.fidelity.page import MARK, kept_text
from benchmarks.machine import machine, sentence
from prismrec.models.exploration import LastLayerLaplace, thompson, upper_bound
from prismrec.models.exploration.gaussian import GaussianHead

ADS, USER_WIDTH, SEEN_WIDTH, HIDDEN_EFFECT = 80, 6, 4, 0.8
ROUNDS, REQUESTS, OFFERED = 100, 32, 10
STEPS, BATCH, INDUCING = 8, 256, 32
OUT = ROOT / "benchmarks/results/exploration.md"


class World:
    """Users and ads whose true click probabilities are known.

    Args:
        seed: of everything drawn.
    """

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.ads = self._normal(ADS, SEEN_WIDTH)
        self._taste = self._normal(USER_WIDTH, SEEN_WIDTH) * 0.5
        self._own = self._normal(ADS) * HIDDEN_EFFECT

    def requests(self, number: int) -> tuple[Tensor, Tensor]:
        """Users (R, U) and the ads offered to each, (R, O); late ads come in the second half."""
        known = ADS // 2 if number < ROUNDS // 2 else ADS
        users = self._normal(REQUESTS, USER_WIDTH)
        order = torch.rand(REQUESTS, known, generator=self.random).argsort(1)
        return users, order[:, :OFFERED]

    def probability(self, users: Tensor, ads: Tensor) -> Tensor:
        """True probabilities (R, O)."""
        fit = torch.einsum("ru,us,ros->ro", users, self._taste, self.ads[ads])
        return torch.sigmoid(-2.5 + fit + self._own[ads])

    def clicks(self, probability: Tensor) -> Tensor:
        """What happens, 0 or 1."""
        return torch.bernoulli(probability, generator=self.random)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)


class Net(nn.Module):
    """A click model: user, ad and a learned vector of the ad, two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ad = nn.Embedding(ADS, 4)
        nn.init.normal_(self.ad.weight, std=0.1)
        width = USER_WIDTH + SEEN_WIDTH + 4
        self.body = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.last = nn.Linear(16, 1)

    def layer(self, users: Tensor, ads: Tensor, seen: Tensor) -> Tensor:
        """The last hidden layer, with the ad's own vector beside it: ads differ there from the first day."""
        own = self.ad(ads)
        return torch.cat([self.body(torch.cat([users, seen, own], -1)), own], -1)

    def forward(self, phi: Tensor) -> Tensor:
        """Logits of what `layer` gives."""
        return self.last(phi[..., :16]).squeeze(-1)


@dataclass
class Learner:
    """The network, what was shown so far, and who knows how sure it is."""

    world: World
    net: Net = field(default_factory=Net)
    users: Tensor = field(default_factory=lambda: torch.empty(0, USER_WIDTH))
    ads: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    clicked: Tensor = field(default_factory=lambda: torch.empty(0))
    laplace: LastLayerLaplace | None = None
    gaussian: GaussianHead | None = None

    def __post_init__(self) -> None:
        self.adam = torch.optim.Adam(self.net.parameters(), 3e-3, weight_decay=1e-4)
        self.gaussian_adam: torch.optim.Adam | None = None

    def learn(self, users: Tensor, ads: Tensor, clicked: Tensor) -> None:
        """Take what was shown, train on all of it, and know again how sure one is."""
        self.users = torch.cat([self.users, users])
        self.ads = torch.cat([self.ads, ads])
        self.clicked = torch.cat([self.clicked, clicked])
        for _ in range(STEPS):
            some = torch.randint(len(self.ads), (BATCH,), generator=self.world.random)
            loss = F.binary_cross_entropy_with_logits(
                self.net(self._layer(some)), self.clicked[some]
            )
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()

    def measure(self) -> None:
        """Fit the last layer's precision to all rows shown."""
        phi = self._layer(torch.arange(len(self.ads))).detach()
        self.laplace = LastLayerLaplace(phi.shape[1])
        self.laplace.update(phi, torch.sigmoid(self.net(phi)).detach())

    def fit_process(self) -> None:
        """Train the Gaussian process on the layer for some steps more."""
        if self.gaussian is None:
            chosen = torch.randint(len(self.ads), (INDUCING,), generator=self.world.random)
            self.gaussian = GaussianHead(self._layer(chosen).detach(), scale=2.0)
            self.gaussian.mean.constant = -2.0
            self.gaussian_adam = torch.optim.Adam(self.gaussian.parameters(), 2e-2)
        assert self.gaussian_adam is not None
        for _ in range(STEPS):
            some = torch.randint(len(self.ads), (BATCH,), generator=self.world.random)
            loss = self.gaussian.loss(self._layer(some).detach(), self.clicked[some], len(self.ads))
            self.gaussian_adam.zero_grad()
            loss.backward()
            self.gaussian_adam.step()

    def _layer(self, rows: Tensor) -> Tensor:
        ads = self.ads[rows]
        return self.net.layer(self.users[rows], ads, self.world.ads[ads])


Policy = Callable[[Learner, Tensor, Tensor], Tensor]
"""From the last layer (R, O, d) and logits (R, O) to scores (R, O)."""


def greedy(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
    """The best of what is known."""
    return logits


def epsilon(share: float) -> Policy:
    """Greedy, but a share of the requests gets any ad."""

    def scores(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
        random = torch.rand(logits.shape, generator=learner.world.random)
        explores = torch.rand(len(logits), 1, generator=learner.world.random) < share
        return torch.where(explores, 1e3 * random, logits)

    return scores


def laplace_bound(kappa: float) -> Policy:
    """UCB on the last layer's weights."""

    def scores(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
        assert learner.laplace is not None
        variance = learner.laplace.variance(phi.flatten(0, 1)).reshape(logits.shape)
        return upper_bound(logits.double(), variance, kappa)

    return scores


def laplace_draw(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
    """Thompson sampling: one draw of the last layer's weights for each request."""
    assert learner.laplace is not None
    moves = [learner.laplace.draw(each, learner.world.random) for each in phi]
    return logits + torch.stack(moves)


def gaussian_bound(kappa: float) -> Policy:
    """UCB on the Gaussian process."""

    def scores(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
        assert learner.gaussian is not None
        mean, variance = learner.gaussian.predict(phi.flatten(0, 1))
        return upper_bound(mean, variance, kappa).reshape(logits.shape)

    return scores


def gaussian_draw(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
    """Thompson sampling: one draw of the function for each request."""
    assert learner.gaussian is not None
    return learner.gaussian.draw(phi, learner.world.random)


def gaussian_mean(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
    """The process without its uncertainty: what it gains by being another model."""
    assert learner.gaussian is not None
    mean, variance = learner.gaussian.predict(phi.flatten(0, 1))
    return thompson(mean, torch.zeros_like(variance)).reshape(logits.shape)


def anything(learner: Learner, phi: Tensor, logits: Tensor) -> Tensor:
    """Any ad."""
    return torch.rand(logits.shape, generator=learner.world.random)


POLICIES: dict[str, Policy] = {
    "greedy": greedy,
    "any ad": anything,
    "epsilon-greedy, 5 %": epsilon(0.05),
    "epsilon-greedy, 10 %": epsilon(0.10),
    "last layer, UCB 1": laplace_bound(1.0),
    "last layer, Thompson": laplace_draw,
    "Gaussian process, mean only": gaussian_mean,
    "Gaussian process, UCB 1": gaussian_bound(1.0),
    "Gaussian process, Thompson": gaussian_draw,
}


def play(name: str, seed: int) -> dict[str, float]:
    """One policy in one world.

    Returns:
        Regret (best offered probability less that of the ad shown) and clicks, per 1,000 requests: of
        the whole run, and of the half in which new ads come.
    """
    torch.manual_seed(seed)
    world, policy = World(seed), POLICIES[name]
    learner = Learner(world)
    regret, clicks = [], []
    for number in range(ROUNDS):
        users, ads = world.requests(number)
        truth = world.probability(users, ads)
        chosen = torch.randint(OFFERED, (REQUESTS,), generator=world.random)
        if number:
            with torch.no_grad():
                spread = users.unsqueeze(1).expand(-1, OFFERED, -1)
                phi = learner.net.layer(spread, ads, world.ads[ads])
                chosen = policy(learner, phi, learner.net(phi)).argmax(1)
        taken = truth.gather(1, chosen[:, None]).squeeze(1)
        clicked = world.clicks(taken)
        regret.append((truth.max(1).values - taken).mean().item())
        clicks.append(clicked.mean().item())
        learner.learn(users, ads.gather(1, chosen[:, None]).squeeze(1), clicked)
        if name.startswith("last layer"):
            learner.measure()
        if name.startswith("Gaussian"):
            learner.fit_process()
    half = ROUNDS // 2
    return {
        "regret": 1000 * statistics.mean(regret),
        "late_regret": 1000 * statistics.mean(regret[half:]),
        "clicks": 1000 * statistics.mean(clicks),
    }


def main() -> None:
    """Play every policy in every world and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python -m benchmarks.exploration --seeds {' '.join(map(str, options.seeds))}"
    found: dict[str, list[dict[str, float]]] = {}
    for name in POLICIES:
        began = time.perf_counter()
        found[name] = [play(name, seed) for seed in options.seeds]
        mean = statistics.mean(run["regret"] for run in found[name])
        print(f"{name}: regret {mean:.1f}, {time.perf_counter() - began:.0f} s", flush=True)
        OUT.write_text(page(found, command))


def page(found: dict[str, list[dict[str, float]]], command: str) -> str:
    """The page, with what was written by hand on the one before."""
    lines = [
        "# Exploration in a simulated bandit",
        "",
        f"`{command}`, {sentence(machine())}, one core. Means over "
        f"{len(found['greedy'])} worlds ± their standard deviation.",
        "",
        f"{ROUNDS * REQUESTS:,} requests in {ROUNDS} rounds; each offers {OFFERED} of {ADS} ads, half of which "
        "are new after half of the rounds; one is shown, and only that one tells whether it is clicked. The "
        f"network is trained after each round on what was shown ({STEPS} steps of {BATCH} rows). Regret is the "
        "best offered probability less that of the ad shown; it, and the clicks, are per 1,000 requests. "
        "`against greedy` is the mean difference of the regret in the same world, and in how many worlds "
        "it is lower.",
        "",
        "| policy | regret | regret, second half | clicks | against greedy |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = [run["regret"] for run in found["greedy"]]
    for name, runs in found.items():
        cells = [_cell([run[key] for run in runs]) for key in ("regret", "late_regret", "clicks")]
        gaps = [run["regret"] - other for run, other in zip(runs, base, strict=True)]
        lower = sum(gap < 0 for gap in gaps)
        against = "" if name == "greedy" else f"{_cell(gaps)}, {lower} of {len(gaps)}"
        lines.append(f"| {name} | {' | '.join(cells)} | {against} |")
    kept = kept_text(OUT).strip()
    return "\n".join([*lines, "", MARK, ""]) + (kept + "\n" if kept else "")


def _cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
