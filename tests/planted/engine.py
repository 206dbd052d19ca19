"""Lanes, files of prompts, and what parts ask of a round."""

from tests.planted import Bug

ROOM, STREAM = "experiments/generation", "models/decoding/stream.py"
ENGINE, POOL = (f"tests/{ROOM}/engine_test.py",), f"{ROOM}/pool.py"
BATCH, LAYERS = (f"tests/{ROOM}/batch_test.py",), (f"tests/{ROOM}/layers_test.py",)
SOCKETS, POLICY = ("tests/models/decoding/sockets_test.py",), ("tests/models/memory/policy_test.py",)

BESIDE, TOGETHER = (f"tests/{ROOM}/together_test.py",), ("tests/models/together_test.py",)

BUGS = (
    Bug(
        "rows that are not named draw beside a piece, too",
        f"{ROOM}/decoder.py",
        "stream.beside(models, p, parts, p.live & among, others, whole, size)",
        "stream.beside(models, p, parts, p.live, others, whole, size)",
        BESIDE,
    ),
    Bug(
        "a round beside a piece is made again",
        f"{ROOM}/engine.py",
        "left = rounds - made",
        "left = rounds",
        BESIDE,
    ),
    Bug(
        "a row keeps the slots of its first piece",
        f"{ROOM}/prompts.py",
        "elif slots > (there := self.decoder.slots(request.one, self._parts)):",
        "elif slots > 64 * (there := self.decoder.slots(request.one, self._parts)):",
        ENGINE,
    ),
    Bug(
        "packed prompts are cut out one token late",
        f"{ROOM}/prompts.py",
        "at = np.int32(start)",
        "at = np.int32(start + 1)",
        BESIDE,
    ),
    Bug(
        "prompts with one beginning share a row",
        f"{ROOM}/serving/cached.py",
        "new.setdefault(request.ids[: self.cache.block].tobytes(), request)",
        "new.setdefault(request.ids.tobytes(), request)",
        BESIDE,
    ),
    Bug(
        "prompts in one row see one another",
        "models/mixers/attend.py",
        "rule = rule & masks.Segments(context.segment_ids, context.segment_ids)",
        "rule = rule & (masks.Segments(context.segment_ids, context.segment_ids) | masks.Causal())",
        TOGETHER,
    ),
    Bug(
        "drafts that are read beside a piece are a chain",
        STREAM,
        "Rows(asked.tokens, asked.position, asked.state, asked.parents, Asked(p.prompt, p.key))",
        "Rows(asked.tokens, asked.position, asked.state, None, Asked(p.prompt, p.key))",
        ("tests/experiments/generation/drafting_test.py", *BESIDE),
    ),
    Bug(
        "the states of rows that are read together change places",
        "models/mixers/together.py",
        "cuts = zip(cut(x, context.parts), context.parts, state, strict=True)",
        "cuts = zip(cut(x, context.parts), context.parts, state[::-1], strict=True)",
        TOGETHER,
    ),
    Bug(
        "a request takes a lane that is taken",
        f"{ROOM}/lanes.py",
        "next(row for row in range(shape.rows) if row not in taken)",
        "next(row for row in range(shape.rows) if row not in list(taken)[:-1])",
        ENGINE,
    ),
    Bug(
        "rows that are moved together keep their old lanes",
        f"{ROOM}/lanes.py",
        "rows[row], request.row = request.row, row",
        "rows[row] = request.row",
        ENGINE,
    ),
    Bug(
        "rows that a plan does not name go on",
        f"{ROOM}/lanes.py",
        "if plan.decodes is None or r.id in plan.decodes]] = True",
        "if plan.decodes is None or r.id]] = True",
        ENGINE,
    ),
    Bug(
        "another row is thrown out than was meant",
        f"{ROOM}/lanes.py",
        "row = jax.jit(take)(self._lanes, jnp.asarray([request.row]))",
        "row = jax.jit(take)(self._lanes, jnp.asarray([0]))",
        ENGINE,
    ),
    Bug(
        "a piece of a prompt reads what is behind it",
        f"{ROOM}/prompts.py",
        "jnp.full((1,), self.request.read + self.tokens + 1, jnp.int32)",
        "jnp.full((1,), len(self.request.ids), jnp.int32)",
        ENGINE,
    ),
    Bug(
        "every piece counts as the first",
        f"{ROOM}/prompts.py",
        "fresh = piece.request.read == 0",
        "fresh = piece.request.read >= 0",
        ENGINE,
    ),
    Bug(
        "what is thrown out comes back last",
        f"{ROOM}/lanes.py",
        "request.row = -1\n        self.waiting.appendleft(request)",
        "request.row = -1\n        self.waiting.append(request)",
        ENGINE,
    ),
    Bug(
        "the newest row stays and the oldest waits",
        POOL,
        "        kept.pop()\n",
        "        kept.pop(0)\n",
        ENGINE,
    ),
    Bug(
        "a pool gives more slots than it has",
        POOL,
        "return Shape(width, slots) if rows <= width and width * slots <= self.size else None",
        "return Shape(width, slots) if rows <= width else None",
        ENGINE,
    ),
    Bug(
        "a policy that must read whole prompts is given pieces",
        f"{ROOM}/prompts.py",
        "if self._whole else pieces(n, self.chunk)",
        "if not self._whole else pieces(n, self.chunk)",
        POLICY,
    ),
    Bug(
        "a row settles with each of its pieces",
        STREAM,
        "ended = jnp.any(position >= 0, axis=1) & (",
        "ended = jnp.any(position >= 0, axis=1) | (",
        POLICY,
    ),
    Bug(
        "soft inputs of rows that have none",
        STREAM,
        "first = jnp.where(feed.on[:, None], feed.vector",
        "first = jnp.where(feed.on[:, None] | True, feed.vector",
        SOCKETS,
    ),
    Bug(
        "of two edits of one site the first is forgotten",
        STREAM,
        'there[site] = behind(there[site], value) if key == "edits" and site in there else value',
        "there[site] = value",
        SOCKETS,
    ),
    Bug(
        "the host looks once and rows go on",
        f"{ROOM}/engine.py",
        "            left = 1\n",
        "            left = 2\n",
        SOCKETS,
    ),
    Bug(
        "a line that was cut off stays",
        f"{ROOM}/batch.py",
        "os.ftruncate(self.file, len(whole))",
        "os.ftruncate(self.file, len(data))",
        BATCH,
    ),
    Bug(
        "after a kill prompts are counted anew",
        f"{ROOM}/batch.py",
        "numbers=[int(numbers[i]) for i in chosen]",
        "numbers=None",
        BATCH,
    ),
    Bug(
        "the time left is that of all prompts",
        f"{ROOM}/batch.py",
        "* (self.total - self.done)",
        "* self.total",
        BATCH,
    ),
    Bug(
        "layers are copied",
        f"{ROOM}/layers.py",
        "jax.device_put(data[i], device, may_alias=True)",
        "jax.device_put(data[i].copy(), device)",
        LAYERS,
    ),
)
