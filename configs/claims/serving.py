"""Claim: each paper on serving is better than what it compares itself with, in the direction that it says.

    python main.py --mode=claim --config=configs/claims/serving.py --workdir=runs/claims/serving

Agrawal et al. 2024 (Sarathi-Serve, arXiv:2403.02310), Gong et al. 2025 (Past-Future, arXiv:2507.10150), Zheng et al.
2024 (BatchLLM, arXiv:2412.03594), Zhao et al. 2024 (prepacking, arXiv:2404.09529), Patel et al. 2023 (Splitwise,
arXiv:2311.18677), Chen et al. 2024 (Lamina, arXiv:2405.01814), Yao et al. 2023 (Flover, arXiv:2305.13484).

All of it in the simulator: policies are the ones that drive the engine, traces are random and the same for both setups.
Costs are those of a model with 7e9 parameters of 2 bytes, 32 layers of width 4096 and keys of every head, on a device
with 1.5e12 bytes and 1.5e14 FLOPs a second: 9.3 ms to read the weights, 93 us a token, 0.35 us a token of context that
is read, 3.5 ns a pair of attention in prompts. They add up where a device would overlap them.

Expect, as seen: every direction. Sampled futures have 1.79 requests a second within the limits, admission by what is
held now 1.52, with ten times their preemptions; four traces before these twelve had left that row open. Sizes are not
those of the papers: hardware, kernels and traces are others. Cost: 5 CPU minutes; nothing is trained.
"""

WEIGHTS, FLOPS, BANDWIDTH = 14e9, 2 * 7e9, 1.5e12
TOKEN = 2 * 2 * 4096 * 32  # bytes of keys and values of a token
SPEED = 1.5e14
COST = (WEIGHTS / BANDWIDTH, FLOPS / SPEED, TOKEN / BANDWIDTH, 4 * 4096 * 32 / SPEED, 0.0)


# Answers of unlike length and little memory; batches that share beginnings; four machines.
HEAVY = {"rate": 5.0, "count": 300, "prompt": 300, "output": 300, "spread": 0.9, "most": 1500}
PATIENT = {"first": 10.0, "gap": 0.1, "stall": 1.5}
SHARED = {"arrivals": "at_once", "count": 240, "prompt": 100, "output": 60, "heads": 60, "head": 1000}
FOUR = {"rate": 12.0, "count": 300}


def get_claim():
    """The claim, for the check `serving`."""
    return {
        "statement": "Policies of serving are better in the direction that their papers say",
        "source": "Agrawal et al. 2024, arXiv:2403.02310; Gong et al. 2025, arXiv:2507.10150; Zheng et al. 2024, "
        "arXiv:2412.03594; Zhao et al. 2024, arXiv:2404.09529; Patel et al. 2023, arXiv:2311.18677; Chen et al. 2024, "
        "arXiv:2405.01814; Yao et al. 2023, arXiv:2305.13484",
        "published": "2.6 times the capacity; 2 to 3 times the goodput; 1.1 to 2 times as fast; 1.4 times; 1.48 times",
        "family": "serving",
        "check": "serving",
        "common": {"cost": COST, "blocks": 6000},
        "trace": {
            "arrivals": "poisson", "rate": 4.0, "count": 150,
            "prompt": 1000, "output": 150, "spread": 0.8, "most": 2000,
        },
        "limits": {"first": 5.0, "gap": 0.1, "stall": 0.2},
        "setups": {
            "first_come": {"options": {"rows": 128}},
            "batches": {"scheduler": "batches", "options": {"rows": 32}},
            "sarathi": {"scheduler": "sarathi", "options": {"budget": 512}},
            "past_future": {"scheduler": "past_future", "options": {"longest": 1500}, "past": 200, "blocks": 600},
            "first_hour": {"scheduler": "past_future", "options": {"longest": 1500}, "blocks": 600},
            "aggressive": {"scheduler": "aggressive", "blocks": 600},
            "conservative": {"scheduler": "conservative", "blocks": 600},
            "groups": {"scheduler": "batchllm", "options": {"budget": 2048}, "cache": True, "blocks": 2000},
            "lru": {"scheduler": "sarathi", "options": {"budget": 2048}, "cache": True, "blocks": 2000},
            "packed": {"read": "packed"},
            "padded": {"read": "padded"},
            "split": {"pools": (2, 2), "transfer": (TOKEN, 25e9, 32)},
            "mixed": {"machines": 4},
            "alone": {"scheduler": "sarathi", "options": {"rows": 1024}, "blocks": 3000},
            # For half the price again: devices with twice the bandwidth for the contexts and four times the room.
            "offloaded": {
                "scheduler": "sarathi", "options": {"rows": 1024}, "blocks": 12000, "price": 1.5,
                "offloaded": {"attention": TOKEN / BANDWIDTH / 2, "traffic": 4 * 4096 * 2 * 32, "bandwidth": 50e9},
            },
        },
        "rows": [
            {
                "statement": "Chunked prompts beside decodes keep more requests within limits than whole prompts",
                "published": "2.6 times the capacity of vLLM within the SLO (Mistral-7B)",
                "better": "sarathi", "worse": "first_come", "figure": "goodput",
            },
            {
                "statement": "Chunked prompts beside decodes have a lower 99th percentile of gaps than whole prompts",
                "published": "stall-free schedules", "better": "sarathi", "worse": "first_come", "figure": "gap",
            },
            {
                "statement": "Admission by sampled futures has more goodput than admission by what is held now",
                "published": "2 to 3 times under heavy load", "better": "past_future", "worse": "aggressive",
                "figure": "goodput", "trace": HEAVY, "limits": PATIENT,
            },
            {
                "statement": "Admission by sampled futures has more goodput than admission by the longest answers",
                "published": "2 to 3 times under heavy load", "better": "past_future", "worse": "conservative",
                "figure": "goodput", "trace": HEAVY, "limits": PATIENT,
            },
            {
                "statement": "Admission by sampled futures preempts less than admission by what is held now",
                "published": "few evictions",
                "better": "past_future", "worse": "aggressive", "figure": "preempted", "trace": HEAVY,
            },
            {
                "statement": "Sampled futures with a past have more goodput than those that begin with none",
                "published": "a control of this house: the released code begins with the longest answers",
                "better": "past_future", "worse": "first_hour", "figure": "goodput", "trace": HEAVY, "limits": PATIENT,
            },
            {
                "statement": "Groups with a common beginning read fewer tokens than arrivals with a cache",
                "published": "58.1 % of tokens saved, vLLM 35.8 %",
                "better": "groups", "worse": "lru", "figure": "read", "trace": SHARED,
            },
            {
                "statement": "Groups with a common beginning write more tokens a second than arrivals with a cache",
                "published": "1.1 to 2 times vLLM", "better": "groups", "worse": "lru", "figure": "throughput",
                "trace": SHARED,
            },
            {
                "statement": "Prompts packed into rows give first tokens earlier than prompts padded to the longest",
                "published": "faster and less memory", "better": "packed", "worse": "padded", "figure": "first",
                "trace": {"arrivals": "bursts"},
            },
            {
                "statement": "Machines that read apart from machines that write have a lower 99th percentile of gaps",
                "published": "1.4 times the throughput at 20 % less cost", "better": "split", "worse": "mixed",
                "figure": "gap", "trace": FOUR,
            },
            {
                "statement": "Machines that read apart from machines that write keep more requests within limits",
                "published": "1.4 times the throughput at 20 % less cost", "better": "split", "worse": "mixed",
                "figure": "goodput", "trace": FOUR,
            },
            {
                "statement": "Attention on devices with more memory writes more tokens a second for the price",
                "published": "1.48 to 12.1 times", "better": "offloaded", "worse": "alone", "figure": "per_price",
                "trace": {"arrivals": "at_once", "count": 400, "output": 400, "prompt": 300, "spread": 0.2},
            },
            {
                "statement": "Requests that join at any step write more tokens a second than batches that end together",
                "published": "11 times FasterTransformer on GPT", "better": "first_come", "worse": "batches",
                "figure": "throughput", "trace": {"rate": 20.0, "prompt": 100},
            },
        ],
        "seeds": tuple(range(4, 16)),
    }  # fmt: skip
