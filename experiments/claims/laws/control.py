"""Laws of controlled decoding, on sources whose laws are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from models.decoding.control import automata, conditional, depth, gedi, semantic, sets
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


def verified() -> Law:
    """Semantic control draws p(x) phi(x) / E[phi] exactly where tokens are independent and the verifier is linear.

    Texts of 4 symbols, each place with a law of its own, five verifiers and laws, all texts; the steps' laws are
    multiplied. Error: largest difference of probabilities.

    Source: Ahmed et al. 2025, "Semantic Probabilistic Control of Language Models", arXiv:2505.01954
    """
    far, cases = 0.0, 0
    with jax.enable_x64(True):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            laws, table = rng.dirichlet(np.ones(V), LENGTH), rng.random((V, 2))
            slope = rng.random((LENGTH, 2)) / (2 * LENGTH)  # phi is between 0.1 and 0.6 on all texts.
            verifier = lambda x, slope=slope: 0.1 + jnp.sum(jnp.asarray(slope) * x)  # noqa: E731
            texts = list(itertools.product(range(V), repeat=LENGTH))
            joint = {x: np.prod(laws[range(LENGTH), x]) * (0.1 + (slope * table[list(x)]).sum()) for x in texts}
            for text in texts:
                drawn = 1.0
                for t, symbol in enumerate(text):
                    found = semantic.linearised(
                        verifier, jnp.log(laws), jnp.asarray((*text[:t], *[0] * (LENGTH - t))), t, jnp.asarray(table)
                    )
                    drawn *= float(jnp.exp(semantic.exact(jnp.log(laws[t]), found))[symbol])
                far, cases = max(far, abs(drawn - joint[text] / sum(joint.values()))), cases + 1
    return Law(float(far), TOLERANCE, cases)


def unordered() -> Law:
    """What follows a set in Set-Based Prompting does not depend on the order of the set's members.

    Three layers of attention whose scores depend on relative positions, in numpy; sets of three members of unlike
    lengths in all six orders, five drawn models. Error: largest difference of the last state, over its size.

    Source: McIlroy-Young et al. 2024, "Set-Based Prompting", arXiv:2406.06581
    """
    far, cases, D = 0.0, 0, 6
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table, kernels = rng.normal(size=(20, D)), rng.normal(size=(3, 3, D, D)) / np.sqrt(D)
        members = [[3, 4, 5], [6], [7, 8]]

        def last(order: list, table: np.ndarray = table, kernels: np.ndarray = kernels) -> np.ndarray:
            laid = sets.layout([[1, 2], order, [9, 10]])
            x, apart = table[laid.tokens], laid.positions[:, None] - laid.positions[None]
            for q, k, v in kernels:
                score = np.where(laid.mask, (x @ q) @ (x @ k).T * np.cos(apart), -np.inf)
                weight = np.exp(score - score.max(axis=1, keepdims=True))
                x = x + np.tanh(weight / weight.sum(axis=1, keepdims=True) @ (x @ v))
            return x[-1]

        first = last(members)
        for order in itertools.permutations(members):
            far, cases = max(far, np.abs(last(list(order)) - first).max() / np.abs(first).max()), cases + 1
    # Three layers of sums of ten terms with factors of size 10 at most: 1e4 roundings of 2^-53 that grow by as much.
    return Law(float(far), 1e4 * 16 * 2.0**-53, cases)


def nested() -> Law:
    """In every layer that a token takes under SkipDecode's schedule, all tokens before it have taken it, too.

    Prompts of 0 to 5 tokens, texts of up to 40, all numbers of layers up to 8 and of first layers that always run.
    Error: pairs of tokens, and layers, of which that is not true.

    Source: Del Corro et al. 2023, "SkipDecode", arXiv:2307.02628
    """
    wrong, cases = 0, 0
    for prompt, length, layers in itertools.product((0, 3, 5), (6, 17, 40), (2, 5, 8)):
        for least, warm_up in itertools.product(range(1, layers + 1), range(1, 3)):
            if warm_up <= least:
                n = depth.layers_at(jnp.arange(length), prompt, length, layers, least)
                table = np.asarray(depth.active(n, layers, warm_up))
                before = np.logical_and.accumulate(table, axis=0)
                wrong += int((table & ~before).sum()) + int((table.sum(axis=1) != np.asarray(n)).sum())
                cases += 1
    return Law(float(wrong), 0.0, cases)


def chance(chain: np.ndarray, text: tuple[int, ...]) -> float:
    """Of a text of the chain, its first symbol given."""
    return float(np.prod([chain[a, b] for a, b in itertools.pairwise(text)]))
