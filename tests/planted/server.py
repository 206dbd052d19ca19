"""A model behind HTTP: what is asked, what is told, what is freed."""

from tests.planted import Bug

ROOM, TESTS = "experiments/serving", "tests/experiments/serving"
TEXTS, HOSTILE = (f"{TESTS}/server_test.py",), (f"{TESTS}/hostile_test.py",)
PLANS, PLANNED = "experiments/generation/serving", (f"{TESTS}/planned_test.py",)
KEPT, DRIVEN = (f"{TESTS}/kept_test.py",), ("tests/experiments/generation/serving/driven_test.py",)
SCORES, LIMITS = (f"{TESTS}/scores_test.py",), (f"{TESTS}/limits_test.py",)

BUGS = (
    Bug(
        "a token is scored by the law behind it",
        f"{ROOM}/scores.py",
        "law = jnp.roll(jax.nn.log_softmax(logits, axis=-1), 1, axis=0)",
        "law = jax.nn.log_softmax(logits, axis=-1)",
        SCORES,
    ),
    Bug(
        "ids of the padding have a probability",
        f"{ROOM}/scores.py",
        "logits = allowed(logits.astype(jnp.float32), vocab_size)",
        "logits = logits.astype(jnp.float32)",
        SCORES,
    ),
    Bug(
        "tokens of a stop string are told",
        f"{ROOM}/tracks.py",
        'if result is not None and result.reason != "stop":',
        "if result is not None:",
        SCORES,
    ),
    Bug(
        "a token is told before its character",
        f"{ROOM}/tracks.py",
        "self._places.begin[count] < len(self.text):",
        "self._places.begin[count] <= len(self.text):",
        SCORES,
    ),
    Bug(
        "the last token of a round counts as a draft",
        f"{ROOM}/tracks.py",
        "self.drafted += [True] * (new - 1) + [False] * min(new, 1)",
        "self.drafted += [True] * new",
        SCORES,
    ),
    Bug(
        "all choices are one text",
        f"{ROOM}/app.py",
        '[both | {"prompt": prompt, "choice": choice} for',
        '[both | {"prompt": prompt, "choice": 0} for',
        TEXTS,
    ),
    Bug(
        "ids are read without the start of a document",
        f"{ROOM}/reading.py",
        "        whole = with_start(tokenizer, ids)\n        return Prompt(whole, len(whole) - len(ids), tokenizer.decode(ids))",
        "        return Prompt(ids, 0, tokenizer.decode(ids))",
        TEXTS,
    ),
    Bug(
        "whoever hangs up keeps the lane",
        f"{ROOM}/worker.py",
        "            (self.planned or self.engine).free(track.request.id)",
        "            pass",
        HOSTILE,
    ),
    Bug(
        "the queue has no end",
        f"{ROOM}/engines.py",
        "        if self.under_way + len(messages) > room:",
        "        if False:",
        HOSTILE,
    ),
    Bug(
        "a killed engine leaves its clients waiting",
        f"{ROOM}/engines.py",
        '            texts.heard.put_nowait({"id": id, "end": ENDED, "counts": [0, 0, 0]})',
        "            pass",
        TEXTS,
    ),
    Bug(
        "any key will do",
        f"{ROOM}/guard.py",
        "if key and not hmac.compare_digest(",
        "if key and not given and not hmac.compare_digest(",
        LIMITS,
    ),
    Bug(
        "any name of this host will do",
        f"{ROOM}/guard.py",
        "if hosts and named not in hosts:",
        "if hosts and not named:",
        HOSTILE,
    ),
    Bug(
        "SIGTERM cuts what is under way",
        f"{ROOM}/server.py",
        "        server.force_exit = server.should_exit  # The second signal waits for nobody.",
        "        server.force_exit = True",
        LIMITS,
    ),
    Bug(
        "a body of any length is read",
        f"{ROOM}/guard.py",
        "BODY, PATIENCE = 1 << 20, 30.0",
        "BODY, PATIENCE = 1 << 30, 30.0",
        HOSTILE,
    ),
    Bug(
        "true counts as a number",
        f"{ROOM}/fields.py",
        "        if type(value) is not int or not self.least",
        "        if not isinstance(value, int) or not self.least",
        HOSTILE,
    ),
    Bug(
        "prompts of n texts count n times",
        f"{ROOM}/answers.py",
        "sum(choice.prompt for choice in firsts)",
        "sum(choice.prompt for choice in self.choices)",
        TEXTS,
    ),
    Bug(
        "another seed than the asked one",
        f"{ROOM}/worker.py",
        '{"seed": message["seed"], "number": number}',
        '{"seed": message["seed"] + 1, "number": number}',
        TEXTS,
    ),
    Bug(
        "the penalty of presence is that of frequency",
        f"{ROOM}/asked.py",
        '        frequency=said.get("frequency_penalty"),',
        '        frequency=said.get("presence_penalty"),',
        TEXTS,
    ),
    Bug(
        "a cached beginning has the bias of whoever left it",
        f"{PLANS}/cached.py",
        "{name: one.side[name] for name in self._changed}",
        "dict(one.side)",
        PLANNED,
    ),
    Bug(
        "half a prompt that was put back counts as read",
        "experiments/generation/lanes.py",
        "                request.one, request.read, request.prefix = None, 0, ()\n",
        "                request.one, request.prefix = None, ()\n",
        PLANNED,
    ),
    Bug(
        "a scheduler is shown the prompt's tokens as the answer's limit",
        f"{PLANS}/planned.py",
        'most, arrival = request.options["max_tokens"], self.arrivals',
        "most, arrival = prompt, self.arrivals",
        DRIVEN,
    ),
    Bug(
        "found tokens are counted for every choice of a prompt",
        f"{ROOM}/answers.py",
        "sum(choice.found for choice in firsts)",
        "sum(choice.found for choice in self.choices)",
        TEXTS,
    ),
    Bug(
        "a text is watched up to a token before its end",
        f"{ROOM}/kept.py",
        "lambda p: p.unread[0] > 0, step, p)",
        "lambda p: p.unread[0] > 1, step, p)",
        KEPT,
    ),
    Bug(
        "a budget of lanes leaves room for prompts",
        f"{ROOM}/worker.py",
        "        if asked.budget <= engine.pool.lanes:\n",
        "        if asked.budget < engine.pool.lanes:\n",
        PLANNED,
    ),
)
