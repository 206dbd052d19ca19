"""Figures of the server in the text form of Prometheus."""

import bisect
from collections import Counter
from typing import Any

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Histogram:
    """Seconds by upper bound."""

    def __init__(self):
        self.counts, self.total = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        """Of the metric `name`."""
        made, below = [], 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            made.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*made, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Figures:
    """What was asked and answered since the server began."""

    def __init__(self):
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status; 499: the client has gone
        self.prompt_tokens = self.drawn_tokens = 0
        self.first, self.whole = Histogram(), Histogram()

    def text(self, gauges: dict[str, tuple[str, str, Any]]) -> str:
        """The page; gauges: name -> (type, what it is, value)."""
        lines = ["# HELP tessera_requests_total Requests by route and status.", "# TYPE tessera_requests_total counter"]
        lines += [
            f'tessera_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += [
            "# HELP tessera_tokens_total Tokens of prompts that were answered, and tokens that were drawn for them.",
            "# TYPE tessera_tokens_total counter",
            f'tessera_tokens_total{{kind="prompt"}} {self.prompt_tokens}',
            f'tessera_tokens_total{{kind="drawn"}} {self.drawn_tokens}',
        ]
        for name, histogram, what in (
            ("tessera_first_token_seconds", self.first, "Until the first piece of a stream."),
            ("tessera_request_seconds", self.whole, "Until a request was answered; of a stream, until it began."),
        ):
            lines += [f"# HELP {name} {what}", f"# TYPE {name} histogram", *histogram.lines(name)]
        for name, (kind, what, value) in gauges.items():
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
