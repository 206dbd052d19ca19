"""Laws of controlled decoding, on sources whose laws are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from models.decoding.control import automata, conditional, gedi
from models.decoding.control import budget as budgets

V, LENGTH = 3, 4
# A probability is a sum of at most 3^5 products of fewer than 16 factors, each rounded to 2^-53, or a log of one.
TOLERANCE = 16 * 3**7 * 2.0**-53


def source(seed: int, classes: int = 1) -> np.ndarray:
    """Chains `[classes, V, V]`: rows are the laws after each symbol."""
    return np.random.default_rng(seed).dirichlet(np.ones(V), (classes, V))


def guided() -> Law:
    """GeDi with weight 1 on the mixture of two Markov sources draws exactly the wanted one's next symbol.

    Every text of 4 symbols, for both classes and three pairs of sources, the start known; likelihoods are not divided
    by the length. Error: largest difference of probabilities.

    Source: Krause et al. 2020, "GeDi", arXiv:2009.06367
    """
    far, cases = 0.0, 0
    with jax.enable_x64(True):
        for seed, wanted in itertools.product(range(3), range(2)):
            chains, prior = source(seed, 2), np.array([0.3, 0.7])
            for text in itertools.product(range(V), repeat=LENGTH):
                steps = list(itertools.pairwise(text))
                likelihood = np.array([np.prod([chain[a, b] for a, b in steps]) for chain in chains])
                mixture = prior * likelihood @ chains[:, text[-1]] / (prior @ likelihood)
                given = (np.log(mixture), np.log(likelihood), np.log(chains[:, text[-1]]), np.log(prior))
                p = np.exp(jax.nn.log_softmax(gedi.exact(*map(jnp.asarray, given), wanted)))
                far, cases = max(far, np.abs(p - chains[wanted, text[-1]]).max()), cases + 1
    return Law(float(far), TOLERANCE, cases)


def budget() -> Law:
    """Budget guidance with the true chance to stop in time draws exactly the chain given that it stops in time.

    Absorbing chains of 3 symbols, budgets of 1 to 5, every text. Error: largest difference of probabilities.

    Source: Li et al. 2025, "Steering LLM Thinking with Budget Guidance", arXiv:2506.13752
    """
    far, cases, stop = 0.0, 0, np.arange(V) == V - 1
    with jax.enable_x64(True):
        for seed, most in itertools.product(range(3), range(1, LENGTH + 2)):
            chain = source(seed)[0]
            chain[-1] = np.eye(V)[-1]
            within = np.asarray(budgets.stops_within(jnp.asarray(chain), stop, most))
            texts = [text for n in range(most) for text in itertools.product(range(V - 1), repeat=n)]
            plain = {text: chance(chain, (0, *text, V - 1)) for text in texts}
            for text, p in plain.items():
                mine, last = 1.0, 0
                for i, symbol in enumerate((*text, V - 1)):
                    law = budgets.exact(jnp.log(jnp.asarray(chain[last])), jnp.asarray(within[most - i - 1]))
                    mine, last = mine * float(jnp.exp(law)[symbol]), symbol
                far, cases = max(far, abs(mine - p / sum(plain.values()))), cases + 1
    return Law(far, TOLERANCE, cases)


def constraint() -> Law:
    """Texts drawn under a constraint's mask, weighed by the mass that it left, have the conditional law.

    Three patterns over 2 letters and an end, three Markov sources, every text of up to 5 symbols: q(x) prod Z is p(x),
    and the exact step of a chain draws p(x) / P. Error: largest difference of probabilities.

    Source: Beurer-Kellner et al. 2023, "LMQL", arXiv:2212.06094, masks; the law of what they draw is computed here
    """
    far, cases, eos = 0.0, 0, V - 1
    with jax.enable_x64(True):
        for seed, pattern in itertools.product(range(3), ("(?:ab)+", "a?b*", "(?:a|ba){2}")):
            chain = source(seed)[0]
            made = automata.lift(automata.compile_regex(pattern), [b"a", b"b", None], eos)
            after = conditional.fulfilled(chain, made, LENGTH + 1)
            texts = [(*text, eos) for n in range(LENGTH + 1) for text in itertools.product(range(V - 1), repeat=n)]
            fulfil = {text: chance(chain, (0, *text)) for text in texts if automata.matches(made, text)}
            for text, p in fulfil.items():
                q, exact, masses, state, last = 1.0, 1.0, [], 0, 0
                for i, symbol in enumerate(text):
                    mask, log_p = automata.allowed(made, state), jnp.log(jnp.asarray(chain[last]))
                    masses.append(conditional.log_mass(log_p, mask))
                    q *= float(jax.nn.softmax(conditional.masked(log_p, mask))[symbol])
                    exact *= conditional.exact(chain[last], made, state, after[LENGTH - i])[symbol]
                    state, last = made.next[state, symbol], symbol
                weight = float(jnp.exp(conditional.log_weight(jnp.stack(masses))))
                far = max(far, abs(q * weight - p), abs(exact - p / sum(fulfil.values())))
                cases += 1
    return Law(float(far), TOLERANCE, cases)


def chance(chain: np.ndarray, text: tuple[int, ...]) -> float:
    """Of a text of the chain, its first symbol given."""
    return float(np.prod([chain[a, b] for a, b in itertools.pairwise(text)]))
