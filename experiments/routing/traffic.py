"""Bytes that a layer of experts moves: the formulas for balanced loads, and the exact sums of a trace.

Letters: t tokens of a device, d width, s bytes of a number, K choices, EP devices that share the experts, ETP devices
that share one expert. All figures are bytes that one device receives in the forward pass; the backward pass moves as
many again.
"""

from typing import Any

import numpy as np


def alltoall(t: int, d: int, s: int, k: int, ep: int, etp: int = 1) -> float:
    """2 K t d s (EP - 1) / EP, and 2 K t d s (ETP - 1) of gathering and reducing over the parts of an expert."""
    return 2 * k * t * d * s * ((ep - 1) / ep + (etp - 1))


def padded(t: int, d: int, s: int, k: int, ep: int, experts: int) -> float:
    """2 (EP - 1) t min(K, E / EP) d s: `alltoall` with buffers for the worst load, as `models.experts.parallel` has."""
    return 2 * (ep - 1) * t * min(k, experts // ep) * d * s


def allgather(t: int, d: int, s: int, ep: int, etp: int = 1) -> float:
    """2 t d s (EP ETP - 1): every token to every device, and partial outputs back."""
    return 2 * t * d * s * (ep * etp - 1)


def distinct_devices(k: int, ep: int) -> float:
    """EP (1 - (1 - 1 / EP)^K): devices that a token is sent to when its K experts fall on them uniformly."""
    return ep * (1 - (1 - 1 / ep) ** k)


def allgather_wins(k: int, ep: int, etp: int = 1) -> bool:
    """EP ETP - 1 < K (EP - 1) / EP: gathering all tokens moves less than sending the chosen ones (ETP = 1)."""
    return allgather(1, 1, 1, ep, etp) < alltoall(1, 1, 1, k, ep, etp)


def expert_parameters(d: int, h: int, experts: int, ep: int, etp: int = 1, gated: bool = True) -> float:
    """Numbers of the experts on one device: (3 or 2) d h E / (EP ETP)."""
    return (3 if gated else 2) * d * h * experts / (ep * etp)


def tutel(r: int, shards: int, capacity: int, experts: int, d: int, s: int, local: int) -> tuple[float, float]:
    """(bytes of tokens, bytes of weights) of a device in Tutel's layout r: 2 r C E d s and (shards / r - 1) local s.

    Args:
      r: 0 (all weights gathered, no token moves), or a divisor of `shards`: tokens are repeated r times.
      shards: devices that share an expert, W / E.
      capacity: C.
      experts: E.
      d: width.
      s: bytes of a number.
      local: parameters of the experts on one device.
    """
    if r == 0:
        return 0.0, float((shards * experts - 1) * local * s)
    if shards % r:
        raise ValueError(f"r={r} does not divide {shards} shards; use e.g. r=1.")
    return float(2 * r * capacity * experts * d * s), float((shards // r - 1) * local * s)


def layout(r: int, t: int, k: int, experts: int, mesh: tuple[int, int], d: int, s: int, local: int) -> tuple[int, int]:
    """(bytes of tokens, bytes of weights) that the layer of `models.experts.parallel` moves in Tutel's layout r.

    With n = ceil(t / S) tokens of a device where S of them share tokens, m = min(K, E / EP):
    r = 0: (S - 1) n d s and (EP S - 1) local s; r = 1: 2 (EP - 1) n m d s + (S - 1) n d s and (S - 1) local s;
    r = S: 2 (EP - 1) t m d s + 2 (S - 1) t d s / S and 0.

    Args:
      r: 0, 1 or S.
      t: tokens that the S devices of an expert have in common.
      k: K.
      experts: E.
      mesh: (EP, S): devices that share the experts, and those that share each of them.
      d: width.
      s: bytes of a number.
      local: parameters of the experts on one device.
    """
    ep, S = mesh
    if r not in (0, 1, S):
        raise ValueError(f"r={r} is no layout of {S} shards here; use 0, 1 or {S}.")
    most, n = min(k, experts // ep), -(-t // S)
    if r == 0:
        return (S - 1) * n * d * s, (ep * S - 1) * local * s
    if r == S:
        return 2 * (ep - 1) * t * most * d * s + 2 * (S - 1) * t * d * s // S, 0
    return 2 * (ep - 1) * n * most * d * s + (S - 1) * n * d * s, (S - 1) * local * s


def folded(t: int, k: int, experts: int, ep: tuple[int, int], etp: tuple[int, int], d: int, s: int) -> int:
    """What the layer of `models.experts.parallel` sends by `alltoall` where experts are folded apart from attention.

    With P = EP_same, n = ceil(t / P), EP = EP_other P and m = min(K, E / EP), for O = ETP_other and S = ETP_same:
    2 (EP - 1) O n m d s of choices, 2 (O - 1) n d s of tokens gathered and sums scattered, 2 (S - 1) n d s / S of sums
    added, (P - 1) n d s of shares gathered. (Liu et al. 2025, arXiv:2504.14960; layouts: equations of Megatron's
    dispatcher with buffers for the worst load.)

    Args:
      t: tokens of a device outside of the layer.
      k: K.
      experts: E.
      ep: devices that share the experts: (those with other tokens, those with the same ones, as heads are cut over).
      etp: devices that share the width of each expert, likewise.
      d: width.
      s: bytes of a number.
    """
    n, m = -(-t // ep[1]), min(k, experts // (ep[0] * ep[1]))
    choices = 2 * (ep[0] * ep[1] - 1) * etp[0] * n * m
    return (choices + 2 * (etp[0] - 1) * n + (ep[1] - 1) * n) * d * s + 2 * (etp[1] - 1) * n * d * s // etp[1]


def sent(index: Any, home: Any, placement: Any, devices: int) -> np.ndarray:
    """Token copies sent from device to device, `[G, G]`, the diagonal those that stay: `index [T, K]`, `home [T]`."""
    index, home, placement = (np.asarray(x) for x in (index, home, placement))
    used = index >= 0
    to = placement[np.maximum(index, 0)]
    found = np.zeros((devices, devices), np.int64)
    np.add.at(found, (np.broadcast_to(home[:, None], index.shape)[used], to[used]), 1)
    return found


def bytes_of(index: Any, home: Any, placement: Any, devices: int, d: int, s: int) -> np.ndarray:
    """Bytes that each device receives for any routing: tokens on the way out, results on the way back, `[G]`."""
    copies = sent(index, home, placement, devices)
    copies = copies - np.diag(np.diag(copies))
    return (copies.sum(0) + copies.sum(1)) * d * s


def exflow(trace: Any, home: Any, placement: Any, d: int, s: int) -> int:
    """Bytes of all layers when a token stays where its expert is: one exchange a layer of a top-1 trace `[N, L]`.

    The all-gather of new tokens' contexts, once an iteration, is not in it.
    """
    return (_stays(trace, home, placement)) * d * s


def _stays(trace: Any, home: Any, placement: Any) -> int:
    trace, at, moved = np.asarray(trace), np.asarray(home), 0
    for layer in range(trace.shape[1]):
        to = np.asarray(placement)[layer][trace[:, layer]]
        moved, at = moved + int(np.sum(to != at)), to
    return moved


def returning(trace: Any, home: Any, placement: Any, d: int, s: int) -> int:
    """Bytes of all layers when every token returns home: two exchanges a layer of a top-1 trace `[N, L]`."""
    trace, home = np.asarray(trace), np.asarray(home)
    moved = sum(int(np.sum(np.asarray(placement)[i][trace[:, i]] != home)) for i in range(trace.shape[1]))
    return 2 * moved * d * s


def scheduled(
    schedule: str, layers: int, t: int, d: int, buffers: tuple[int, int, int], context: int = 0, s: int = 4
) -> dict[str, int]:
    """Bytes that a device sends in a step of `models.experts.schedules`, by what sends them, as compiled.

    With W devices, C places for each other device, S seats, c numbers of context a token and layer, and numbers of
    tokens and experts of four bytes:
    returning: exchange L (W - 1) C (2 d s + 4), gather (W - 1) t (d s + L (c s + 4)).
    coherent: exchange L (W - 1) C (d s + s + 8), gather (W - 1) S (d s + 4 + L (c s + 8)).
    speculative: exchange L (W - 1) C (2 d s + 4), reduce L (W - 1) t d s, gather L (W - 1) t (d s + 4).

    Args:
      schedule: "returning", "coherent" or "speculative".
      layers: L.
      t: tokens of a device, N / W.
      d: width.
      buffers: (W, C, S); S is that of "coherent", 0 = N.
      context: c.
      s: bytes of a number.
    """
    devices, places, seats = buffers
    L, others = layers, devices - 1
    two = L * others * places * (2 * d * s + 4)
    if schedule == "returning":
        return {"exchange": two, "gather": others * t * (d * s + L * (context * s + 4))}
    if schedule == "coherent":
        gather = others * (seats or t * devices) * (d * s + 4 + L * (context * s + 8))
        return {"exchange": L * others * places * (d * s + s + 8), "gather": gather}
    if schedule == "speculative":
        return {"exchange": two, "reduce": L * others * t * d * s, "gather": L * others * t * (d * s + 4)}
    raise ValueError(f"schedule={schedule!r} is unknown; use 'returning', 'coherent' or 'speculative'.")


def places(trace: Any, home: Any, placement: Any, devices: int, *, stays: bool = False) -> int:
    """The most vectors that a device has for another in any layer of a top-1 trace: what loses none.

    Args:
      trace: `[N, L]`.
      home: the device where each token stands `[N]`, or in each layer `[N, L]`.
      placement: `[L, E]`.
      devices: W.
      stays: whether a token stands where its last expert was (`coherent`).
    """
    trace, home, placement = np.asarray(trace), np.asarray(home), np.asarray(placement)
    at, most = home if home.ndim == 1 else None, 0
    for layer in range(trace.shape[1]):
        here = home[:, layer] if at is None else at
        moved = sent(trace[:, layer, None], here, placement[layer], devices)
        most = max(most, int((moved - np.diag(np.diag(moved))).max()))
        at = placement[layer][trace[:, layer]] if stays else at
    return most
