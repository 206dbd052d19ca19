"""Serving: plans of a step, what is foreseen, what is shared, queues, costs, the engine under a policy."""

from tests.planted import Bug

ROOM, TESTS = "experiments/generation/serving", "tests/experiments/generation/serving"
SARATHI, FUTURES = (f"{TESTS}/sarathi_test.py",), (f"{TESTS}/past_future_test.py",)
GROUPS, PACKED, POOLS = (f"{TESTS}/batchllm_test.py",), (f"{TESTS}/prepacking_test.py",), (f"{TESTS}/pools_test.py",)
SIMULATOR, CACHE = (f"{TESTS}/simulator_test.py",), (f"{TESTS}/prefix_cache_test.py",)
DRIVEN, CACHED = (f"{TESTS}/driven_test.py",), (f"{TESTS}/cached_test.py",)
CLUSTER = (f"{TESTS}/cluster_test.py",)

BUGS = (
    Bug(
        "a decode's tokens do not count in the budget",
        f"{ROOM}/sarathi.py",
        "        if tokens := limits.chunk(row, len(decodes) + sum(chunks.values())):",
        "        if tokens := limits.chunk(row, sum(chunks.values())):",
        SARATHI,
    ),
    Bug(
        "an admission may use the watermark's blocks",
        f"{ROOM}/sarathi.py",
        "        fits = free - needs >= watermark_blocks(limits.total, limits.watermark)",
        "        fits = free - needs >= 0",
        SARATHI,
    ),
    Bug(
        "the first of the rows is preempted",
        f"{ROOM}/sarathi.py",
        "            victim = order.pop() if order else row",
        "            victim = order.pop(0) if order else row",
        SARATHI,
    ),
    Bug(
        "chunks grow along a prompt",
        f"{ROOM}/sarathi.py",
        "    even = np.linspace(low, high, stages, dtype=np.int32)[::-1]",
        "    even = np.linspace(low, high, stages, dtype=np.int32)",
        SARATHI,
    ),
    Bug(
        "the peak is looked for with the shortest answers first",
        f"{ROOM}/past_future.py",
        '    order = np.argsort(-b, kind="stable")',
        '    order = np.argsort(b, kind="stable")',
        FUTURES,
    ),
    Bug(
        "lengths of the past that are just reached are sampled",
        f"{ROOM}/past_future.py",
        "ordered[bisect.bisect_right(ordered, done) :]",
        "ordered[bisect.bisect_left(ordered, done) :]",
        FUTURES,
    ),
    Bug(
        "the smallest of the futures decides",
        f"{ROOM}/past_future.py",
        "    return max(peaks) < capacity * (1 - RESERVED) - paused - cached",
        "    return min(peaks) < capacity * (1 - RESERVED) - paused - cached",
        FUTURES,
    ),
    Bug(
        "a group that opens forgets the tokens before its father",
        f"{ROOM}/batchllm.py",
        "(node.depth + tokens, groups + 1, True)",
        "(len(node.tokens) + tokens, groups + 1, True)",
        GROUPS,
    ),
    Bug(
        "groups with short answers come first",
        f"{ROOM}/batchllm.py",
        "key=lambda g: -ratio(prompts, answers, groups[g]))",
        "key=lambda g: ratio(prompts, answers, groups[g]))",
        GROUPS,
    ),
    Bug(
        "positions go on across packed prompts",
        f"{ROOM}/prepacking.py",
        "            positions[r, span] = np.arange(sizes[i])",
        "            positions[r, span] = at + np.arange(sizes[i])",
        PACKED,
    ),
    Bug(
        "packed prompts see those before them",
        f"{ROOM}/prepacking.py",
        "            mask[r, span, span] = np.tri(sizes[i], dtype=bool)",
        "            mask[r, span, :] = np.arange(T) <= np.arange(at, at + sizes[i])[:, None]",
        PACKED,
    ),
    Bug(
        "a layer is sent before it is computed",
        f"{ROOM}/splitwise.py",
        "    return latency + max(prefill + each, prefill / layers + layers * each)",
        "    return latency + max(prefill, layers * each)",
        POOLS,
    ),
    Bug(
        "as many replicas as batches",
        f"{ROOM}/lamina.py",
        "model / max(1, batches - 1))",
        "model / batches)",
        POOLS,
    ),
    Bug(
        "holes are filled from the last row on",
        f"{ROOM}/flover.py",
        "    source[~alive[:n]] = n + np.flatnonzero(alive[n:])",
        "    source[~alive[:n]] = n + np.flatnonzero(alive[n:])[::-1]",
        POOLS,
    ),
    Bug(
        "a preempted row forgets what it wrote",
        f"{ROOM}/jobs.py",
        "        return dataclasses.replace(self, prompt=self.prompt + self.since, read=0, since=0, shared=0)",
        "        return dataclasses.replace(self, read=0, since=0, shared=0)",
        SIMULATOR,
    ),
    Bug(
        "preempted rows wait at the queue's end",
        f"{ROOM}/simulator.py",
        "        machine.waiting.insert(0, gone)",
        "        machine.waiting.append(gone)",
        (*SIMULATOR, *DRIVEN),
    ),
    Bug(
        "memory that is on its way is free",
        f"{ROOM}/simulator.py",
        "        if away:\n",
        "        if False:\n",
        SIMULATOR,
    ),
    Bug(
        "whoever is cut from a plan is the first who was admitted",
        f"{ROOM}/schedulers.py",
        "        last = admit.pop() if admit else stay.pop().id",
        "        last = admit.pop(0) if admit else stay.pop().id",
        SIMULATOR,
    ),
    Bug(
        "blocks in use are evicted",
        f"{ROOM}/prefix_cache.py",
        "        key = next((key for key, block in self.blocks.items() if not block.references), None)",
        "        key = next(iter(self.blocks), None)",
        CACHE,
    ),
    Bug(
        "a block stands for its own tokens alone",
        f"{ROOM}/prefix_cache.py",
        "        before = hashlib.sha256(before + tokens.encode()).digest()",
        "        before = hashlib.sha256(tokens.encode()).digest()",
        CACHE,
    ),
    Bug(
        "costs are fitted without weights",
        f"{ROOM}/costs.py",
        "        root = np.sqrt(np.maximum(fitted, 1e-3 * seconds.mean()))  # A step that would cost nothing has a weight, too.\n",
        "        root = np.ones(len(seconds))\n",
        SIMULATOR,
    ),
    Bug(
        "the engine's rows are given with the prompt's last token",
        f"{ROOM}/planned.py",
        "        prompt, done = len(request.ids) - 1, len(request.tokens)",
        "        prompt, done = len(request.ids), len(request.tokens)",
        DRIVEN,
    ),
    Bug(
        "a cached row begins a block too early",
        f"{ROOM}/cached.py",
        "            leaves = self._put(leaves, piece.grown, np.int32(number * self.cache.block))",
        "            leaves = self._put(leaves, piece.grown, np.int32(0))",
        CACHED,
    ),
    Bug(
        "blocks are kept before they have ended",
        f"{ROOM}/cached.py",
        "        whole = request.read // self.cache.block\n",
        "        whole = -(-request.read // self.cache.block)\n",
        CACHED,
    ),
    Bug(
        "dearer pools are tried first",
        f"{ROOM}/cluster.py",
        "key=lambda size: (price_of(*size, price), size))",
        "key=lambda size: (-price_of(*size, price), size))",
        CLUSTER,
    ),
    Bug(
        "a budget buys pools that are not as large as they could be",
        f"{ROOM}/cluster.py",
        "            sizes[-1] = (prompt, token)\n",
        "            pass\n",
        CLUSTER,
    ),
    Bug(
        "slowdowns are of the queue, too, of the request alone",
        f"{ROOM}/cluster.py",
        '"whole": {id: s.times[-1] - s.asked.arrival for id, s in served},',
        '"whole": {id: s.times[-1] for id, s in served},',
        CLUSTER,
    ),
    Bug(
        "requests are read by the pool that writes, too",
        f"{ROOM}/cluster.py",
        'if machine.pool == "prompt"]\n',
        "if True]\n",
        CLUSTER,
    ),
)
