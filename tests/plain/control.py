"""Control of decoding as plain loops over numbers, float64, from the papers' and the released code's formulas."""

import itertools
import math
import re

import numpy as np
from scipy import special, stats


def softmax(x):
    e = np.exp(np.asarray(x, float) - np.max(x))
    return e / e.sum()


def log_softmax(x):
    return np.log(softmax(x))


def gedi_released(
    logits, history, class_logits, steps, *, weight, filter_p, target_p, scale=1.0, bias=(0, 0), class_bias=0
):
    """One step of generate(): (scores, log P of the desired class) of each token; class 0 is the desired one."""
    V = len(logits)
    desired = np.zeros(V)
    per_class = [log_softmax(row) for row in class_logits]
    for v in range(V):
        score = []
        for c in range(len(history)):
            mean = (per_class[c][v] + history[c]) / (steps + 1)
            score.append(scale * mean + bias[c] + (class_bias if c == 0 else 0))
        desired[v] = score[0] - math.log(sum(math.exp(s) for s in score))
    scores = log_softmax(logits) + weight * desired
    p, summed = softmax(scores), 0.0
    for v in sorted(range(V), key=lambda v: desired[v]):
        summed += p[v]
        if summed < filter_p and desired[v] < math.log(target_p):
            scores[v] -= 10000
    return scores, desired


def gedi_repetition(scores, previous, penalty, scale):
    scores = np.array(scores, float)
    scores = scores - scores.max() + scale
    for token in previous:
        if scale > 0:
            again = scores[token] == scale
            scores[token] /= penalty
            if again:
                scores = scores - scores.max() + scale
        elif scores[token] < 0:
            scores[token] *= penalty
        else:
            scores[token] /= penalty
    return scores


def budget_released(logits, alpha, rate, remaining):
    """One step behind a newline."""
    weight = np.zeros(len(logits))
    for v in range(len(logits)):
        expected = math.exp((alpha[v] - 1) / rate[v]) - 1
        if rate[v] >= 10 and alpha[v] > 1 and expected >= 0.9:
            weight[v] = stats.gamma.cdf(math.log(remaining + 1), alpha[v], scale=1 / rate[v])
    if (weight == 0).all():
        weight[np.argmax(logits)] = 1
    p = softmax(logits) * weight
    return p / p.sum()


def texts_of(chain, start, stop, length):
    """Every text of a chain up to and with its first absorbing state, at most `length` steps: (states, probability)."""

    def go(state, states, p):
        if stop[state]:
            yield states, p, True
            return
        if len(states) == length:
            yield states, p, False
            return
        for target in range(len(chain)):
            if chain[state][target] > 0:
                yield from go(target, [*states, target], p * chain[state][target])

    yield from go(start, [], 1.0)


def superposed_step(p, ngrams, score, alpha, penalty, first, eos=None):
    """The released step for one prompt: p is the renormalised top-n law, ngrams a law for each text."""
    k, V = ngrams.shape
    log_p = np.full((k, V), -np.inf)
    for d in range(k):
        for v in range(V):
            if p[v] > 0 and ngrams[d, v] > 0:
                log_p[d, v] = (1 - alpha) * math.log(p[v]) + alpha * math.log(ngrams[d, v])
        if np.isinf(log_p[d]).all():
            for v in range(V):
                if p[v] > 0:
                    log_p[d, v] = (1 - alpha) * math.log(p[v]) - penalty
    options = [(score[d] + log_p[d, v], -d, -v) for d in range(1 if first else k) for v in range(V)]
    options = sorted(options, reverse=True)[: 2 * k]
    if eos is not None:
        options = [(s - (1e7 if -v == eos else 0), d, v) for s, d, v in options]
    best = sorted(options, key=lambda option: -option[0])[:k]
    return log_p, [(-d, -v, s) for s, d, v in best]


def swi(entropies, ends, symbols, window, most=None):
    """The loop of generate_swir for one row: per step (mode, reads the expected embedding, change)."""
    mode, stay, locked, reference, switches, out = 0, 0, False, None, 0, []
    for step, (H, end, symbol) in enumerate(zip(entropies, ends, symbols, strict=True)):
        locked = locked or end
        change = ""
        if step == 0:
            reference = H
        else:
            stay += 1
            to_normal = mode == 0 and H < reference
            to_soft = mode == 1 and H > reference and stay >= window and not locked
            if to_normal:
                mode, change = 1, "explicit"
            elif to_soft:
                mode, change = 0, "soft"
            if change:
                stay, reference = 0, H
            switches += to_normal
        out.append((mode, not (mode == 1 or locked or symbol), change, switches))
    return out


def adadec(history, first, rollout, length, weight):
    out = []
    for b in range(len(first)):
        total = first[b] + sum(rollout[b][: length[b]])
        out.append(history + weight * total / (length[b] + 1))
    return out


def adadec_released(history, first, rollout, length, weight):
    out = []
    for b in range(len(first)):
        total = first[b]
        for step in range(max(length)):
            total += rollout[b][step]
        out.append(history + weight * total / (length[b] + 1))
    return out


def beam_search(log_p_of, beams, steps, eos):
    """All texts of at most `steps` tokens in a beam search: log_p_of(text) -> `[V]`."""
    kept = [((), 0.0)]
    for _ in range(steps):
        options = []
        for text, score in kept:
            if text and text[-1] == eos:
                options.append(((*text, eos), score))
                continue
            options += [((*text, v), score + value) for v, value in enumerate(log_p_of(text))]
        kept = sorted(options, key=lambda option: -option[1])[:beams]
    return kept


def set_positions(parts):
    out, start = [], 0
    for part in parts:
        if part and isinstance(part[0], list):
            for member in part:
                out += [start + i for i in range(len(member))]
            start += max(len(member) for member in part)
        else:
            out += [start + i for i in range(len(part))]
            start += len(part)
    return out, start


def set_mask(parts):
    """The released loop: members that come later do not see earlier ones, nor do they see what is not there yet."""
    total = sum(sum(map(len, part)) if part and isinstance(part[0], list) else len(part) for part in parts)
    mask = np.tril(np.ones((total, total), bool))
    at = 0
    for part in parts:
        if not (part and isinstance(part[0], list)):
            at += len(part)
            continue
        sizes = [len(member) for member in part]
        for i in range(1, len(sizes)):
            rows = slice(at + sum(sizes[:i]), at + sum(sizes))
            mask[rows, at + sum(sizes[: i - 1]) : at + sum(sizes[:i])] = False
        at += sum(sizes)
    return mask


def nudging_words(text, base, threshold):
    """Stage 1 of the released loop: base(prefix) -> (first token, its probability); the words that are taken."""
    words = text.split(" ")
    found, at = False, 0 if len(words) > 1 else 1
    while not found and at < len(words) - 1:
        at += 1
        word = " " + words[at]
        if word == " ":
            continue
        token, p = base(" ".join(words[:at]))
        found = word.startswith(token) or not p < threshold
    return words[:at]


def longest_matches(tokens, size, breaks=()):
    """text-generation-webui's loop."""
    out = [0] * size
    last = tokens[-1]
    if last in breaks:
        return out
    for i in range(len(tokens) - 1):
        if tokens[i] != last:
            continue
        follows = tokens[i + 1]
        if follows in breaks:
            continue
        length = 1
        while i - length >= 0:
            previous = tokens[-(length + 1)]
            if tokens[i - length] != previous or previous in breaks:
                break
            length += 1
        out[follows] = max(out[follows], length)
    return out


def banned_ngrams(tokens, n):
    """transformers' table of n-grams."""
    if len(tokens) + 1 < n:
        return set()
    table = {}
    for i in range(len(tokens) - n + 1):
        gram = tokens[i : i + n]
        table.setdefault(tuple(gram[:-1]), []).append(gram[-1])
    return set(table.get(tuple(tokens[len(tokens) + 1 - n :]), []))


def typical(logits, mass):
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    far = np.abs(-log_p + (p * log_p).sum())
    order, total, bar = np.argsort(far, kind="stable"), 0.0, None
    for v in order:
        total += p[v]
        bar = far[v]
        if total >= mass:
            break
    return {v for v in range(len(p)) if far[v] <= bar}


def mirostat_v1(logits, mu, m):
    p = np.sort(softmax(logits))[::-1]
    over = under = 0.0
    for i in range(min(m, len(p)) - 1):
        t = math.log((i + 2) / (i + 1))
        over += t * math.log(p[i] / p[i + 1])
        under += t * t
    s = over / under
    e = s - 1
    return max(int(((e * 2**mu) / (1 - len(p) ** -e)) ** (1 / s)), 1)


def matching(pattern, alphabet, longest):
    """All texts of the alphabet up to a length that match the pattern, by Python's own engine."""
    texts = ("".join(text) for n in range(longest + 1) for text in itertools.product(alphabet, repeat=n))
    return {text for text in texts if re.fullmatch(pattern, text)}


def log_uncertainty(logits, k):
    x = np.sort(logits)[::-1][:k]
    S = x.sum()
    aleatoric = -sum(x[i] / S * (special.digamma(x[i] + 1) - special.digamma(S + 1)) for i in range(k))
    return aleatoric, k / (S + k)
