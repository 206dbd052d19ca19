"""Every knob of the house, once, with its unit or trap. An experiment starts from here and states only what differs.

    config = base.get_config()
    config.model.num_layers = 12

A part is named in its socket (`config.model.mixer = "attention"`) and reads the group that carries its name
(`config.model.attention`), so that one line swaps the part and nothing else.
"""

import difflib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The whole configuration with the house defaults: a small byte-level Transformer."""
    config = ConfigDict()
    config.seed = 0  # Folds into initialisation, data order and sampling; nothing else draws random numbers.
    config.objective = "next_token"  # What is learned: see models.objectives.OBJECTIVES.

    config.data = data = ConfigDict()
    data.source = "stdlib"  # See data.SOURCES: stdlib, text, tfds, mixture, digits, random.
    data.path = ""  # For source=text: a file, a folder or a glob (.txt .md .py .jsonl, also .gz).
    data.name = ""  # For source=tfds: the dataset's name, or a folder that holds a prepared one.
    data.components = ()  # For source=mixture: a tuple of dicts, each a source with its own `weight`.
    data.tokenizer = "bytes"  # bytes or bpe (trained on the corpus, offline, cached).
    data.vocab_size = 0  # For tokenizer=bpe: its size with specials. For source=random: the ids drawn from.
    data.tokenizer_sample = 4 << 20  # For tokenizer=bpe: bytes of the training split that it learns from; 0 = all.
    data.validation = 0.05  # Share of the bytes held out, by documents, chosen by the hash of their content.
    data.max_files = 0  # Reads at most this many files of the corpus; 0 = all.
    data.length = 256  # T: tokens a row.
    data.batch_size = 16  # B: rows in a GLOBAL batch, over all devices, processes and accumulation steps.
    data.packing = "stream"  # stream (rows are windows of the document stream) or first_fit (whole documents).
    data.isolate = True  # Attention and positions stop at document borders (segment ids).
    data.cache_dir = "~/.cache/tessera"  # Tokenised corpora and tokenizers, keyed by content hash.

    config.model = model = ConfigDict()
    model.vocab_size = 0  # V. 0 = what the tokenizer and the objective need.
    model.vocab_multiple = 1  # Rounds V up, e.g. 128 for accelerators; the extra rows are never targets.
    model.width = 256  # D: model width.
    model.num_layers = 4  # L.
    model.num_heads = 4  # N: query heads.
    model.num_kv_heads = 0  # K: key/value heads (GQA); 0 = N.
    model.head_dim = 0  # H; 0 = D / N.
    model.mixer = "attention"  # How tokens see each other. A comma list repeats over depth: "lact,attention".
    model.channel = "mlp"  # What happens to one token: mlp, swiglu, pattention (one map of parameter tokens).
    model.projection = "dense"  # What a linear map is: dense, pattention (TokenFormer).
    model.norm = "rmsnorm"  # rmsnorm or layernorm, before each mixer and channel.
    model.norm_scale = True  # A learned scale in those norms (False: non-parametric).
    model.norm_bias = False  # A learned bias in those norms (layernorm only).
    model.norm_eps = 1e-6
    model.final_norm = "same"  # The norm before the head: "same", or rmsnorm / layernorm with scale (and bias).
    model.tied = True  # The head is the transposed embedding.
    model.logit_scale = 1.0  # Multiplies logits; 0 = 1/sqrt(D) (tied heads with unit-variance embeddings).
    model.softcap = 0.0  # cap * tanh(logits / cap); 0 = off.
    model.embedding_scale = 1.0  # Multiplies embeddings after look-up; 0 = sqrt(D).
    model.time_features = 0  # Even: features of the noise level t, added by a learned map; 0 = t is not told.
    model.self_condition = False  # A learned map of an earlier prediction, added to the input (neodiff).
    model.parametrization = "standard"  # How sizes set the rest: standard, or mup (rates tuned at a small base hold).
    model.init = "normal"  # Of projections: normal(init_std), fan_in, or normal_depth (outputs / sqrt(2L)).
    model.init_std = 0.02
    model.dtype = "float32"  # Computation: float32 or bfloat16. Norms, softmax and losses stay in float32.
    model.param_dtype = "float32"  # Storage of parameters: float32 or bfloat16; see optimizer.rounding.
    model.remat = "none"  # Rematerialisation of a layer: none, full, dots (keeps matmul outputs).
    model.unroll = 0  # Layers unrolled in one scan iteration; 0 = all when L <= 12 and remat is none, else 1.

    model.mup = mup = ConfigDict()  # For parametrization=mup: sizes of the model at which the rest was tuned.
    mup.base_width = 128  # D of the base.
    mup.base_head_dim = 0  # H of the base; 0 = H: a wider model has more heads, not wider ones.
    mup.base_layers = 0  # L of the base; 0 = L: branches are not scaled by depth.

    model.attention = attention = ConfigDict()
    attention.rope_fraction = 1.0  # Share of head dims that rotate (rotate-half); 0 = no positions at all.
    attention.rope_theta = 10000.0
    attention.qk_norm = False  # RMSNorm with scale over each head of q and k.
    attention.window = 0  # Tokens a query sees, itself included; 0 = all.
    attention.sinks = 0  # First tokens of the sequence that stay visible beyond the window.
    attention.bias = False  # Bias in q, k, v, o.
    attention.implementation = ""  # "" = best for the platform; else reference, chunked, pallas_tpu, ...

    model.lact = lact = ConfigDict()  # Large-chunk test-time training beside a sliding window.
    lact.heads = 4  # Networks of fast weights; divides N x H. Their width and number fix the state: 3 F d each.
    lact.hidden_ratio = 1.0  # F of a network as a multiple of its width d.
    lact.chunk_size = 2048  # Tokens per update. A document of no more than one chunk is never learned from.
    lact.window = (
        2048  # Tokens that the attention branch sees; below chunk_size some tokens of a chunk are seen by none.
    )
    lact.newton_schulz_steps = (
        5  # Orthogonalises each update (Muon); 0 = off: then the rates set the step, not weights.
    )
    lact.momentum = True  # A learned gate per chunk carries the update before into this one; doubles the state.
    lact.normalize = "post"  # Rows of fast weights keep their length: post (after each update), pre (when read), none.
    lact.base_rate = 0.001  # Rate of a token at initialisation.
    lact.rank = 32  # Of the start of two of the three matrices, beside 0.5 I; 0 = full matrices.
    lact.value_silu = True  # SiLU on the values of the fast branch; queries and keys always have it.
    lact.output_scale = True  # A learned gate per token and head on the fast branch.
    lact.qk_norm = False  # RMSNorm over all of q and of k, before both branches.
    lact.rope_fast = True  # Rotary positions in the fast branch too; the attention branch always has them.
    lact.rope_theta = 1000000.0

    model.ttt_linear = ttt = ConfigDict()  # Test-time training of one linear map a head (num_heads of them).
    ttt.mini_batch = 16  # Tokens that share the weights at which gradients are taken.
    ttt.base_rate = 1.0  # Times a sigmoid gate / H: the inner learning rate.
    ttt.gate = False  # A GeLU gate on the output, one more D x D map (published beside a short convolution).
    ttt.rope_theta = 10000.0  # Positions count within a mini-batch.

    model.ttt_mlp = ttt = ConfigDict()  # As ttt_linear, with two maps and GeLU between them.
    ttt.mini_batch = 16
    ttt.base_rate = 0.1
    ttt.hidden_ratio = 4.0  # Hidden width of the inner model as a multiple of H.
    ttt.gate = False
    ttt.rope_theta = 10000.0

    model.linear_attention = linear = ConfigDict()
    linear.chunk_size = 64  # Tokens a matmul; any gives the same numbers, only the speed differs.
    linear.decay = True  # A learned gate per token and head forgets; False: the memory only grows.

    model.gated_delta = ConfigDict({"chunk_size": 64})

    model.mlp = ConfigDict({"hidden": 0, "activation": "gelu", "bias": False})  # F; 0 = 4D.
    model.swiglu = ConfigDict({"hidden": 0, "bias": False})  # F; 0 = 8D/3 rounded up to a multiple of 64.

    model.pattention = pattention = ConfigDict()  # For projection=pattention and channel=pattention.
    pattention.tokens = 0  # P: parameter tokens of each map of a mixer; 0 = D.
    pattention.channel_tokens = 0  # P of each map of a channel; 0 = 4 x tokens.
    pattention.q_tokens = 0  # P of one map of a mixer; 0 = tokens.  # before: 0, and so the next five.
    pattention.k_tokens = 0
    pattention.v_tokens = 0
    pattention.o_tokens = 0  # The map of what was mixed, back to D.
    pattention.up_tokens = 0  # P of the maps of a channel to its hidden width; 0 = channel_tokens.
    pattention.down_tokens = 0  # Of the one from it.
    pattention.normalization = "l2_gelu"  # Of the scores over P: l2_gelu, gelu_l2, softmax (which cannot grow).
    pattention.gelu = "exact"  # exact or tanh.
    pattention.init_values = "wang"  # wang: N(0, (2 / (L sqrt(D)))^2); normal(init_std); fan_in. Keys: init_std.
    pattention.top_r = 0  # Router: keeps so many of `tokens` by score, the same share in channels; 0 = all.
    pattention.top_by = "score"  # score, or magnitude: |score|, with which growth stays exact.
    pattention.implementation = ""  # "" = best for the platform; else reference, xla, tpu, gpu.

    config.loss = ConfigDict()
    config.loss.z_loss = 0.0  # Weight of mean log(Z)^2.

    config.masked_diffusion = diffusion = ConfigDict()
    diffusion.schedule = "linear"  # linear, loglinear, cosine_md4, cosine_mdlm, poly (k=2), geometric.
    diffusion.masking = (
        "bernoulli"  # bernoulli (each token by the rate of its row) or fixed_count (k of n, weight n/k).
    )
    diffusion.times = "stratified"  # bernoulli: iid, offset (one for all rows) or stratified, over the GLOBAL batch.
    diffusion.t_min = 1e-3  # bernoulli: times are drawn between t_min and t_max. The linear schedule masks at rate t.
    diffusion.t_max = 1.0
    diffusion.steps = 0  # bernoulli: steps of the discrete-time loss; 0 = continuous time.
    diffusion.draws = 4  # Evaluation: fixed-count estimates a row; each costs a forward pass.

    config.block_diffusion = diffusion = ConfigDict()
    diffusion.block = 4  # Tokens a block; divides data.length. 1 is autoregressive, data.length is masked diffusion.
    diffusion.schedule = "linear"  # As in masked_diffusion, for each block by itself.
    diffusion.masking = "bernoulli"
    diffusion.times = "stratified"  # Over all blocks of the GLOBAL batch.
    diffusion.t_min = 1e-3  # Clipped rates lower the variance: 0.45 to 0.95 at block 4, 0.3 to 0.8 at block 16 (LM1B).
    diffusion.t_max = 1.0
    diffusion.weighting = "elbo"  # Training: elbo, or ones for weight 1 at every masked token.
    diffusion.draws = 4

    config.score_entropy = diffusion = ConfigDict()
    diffusion.graph = "absorb"  # absorb (tokens become masks) or uniform (tokens become any token; no mask).
    diffusion.head = "score"  # What logits mean: score (SEDD), or probs of the clean token (uniform: UDLM).
    diffusion.schedule = "loglinear"  # loglinear, cosine_mdlm or geometric: those whose noise is finite at t = 1.
    diffusion.times = "stratified"
    diffusion.t_min = 1e-3  # Training draws times between t_min and t_max; evaluation between 0 and 1.
    diffusion.t_max = 1.0
    diffusion.draws = 4

    config.any_subset = ConfigDict()
    config.any_subset.rate_min = 0.85  # Training: the share of targets is drawn between the two; the rest is prompt.
    config.any_subset.rate_max = 0.99

    config.insertion = ConfigDict()  # Reads a row as one string: data.isolate=False.
    config.insertion.weighting = "length"  # length (L + 1 a row: the sampled law is exact), or constant (as published).
    config.insertion.draws = 4

    config.neodiff = neodiff = ConfigDict()  # Needs model.time_features: each token is told its own noise.
    neodiff.levels = 99  # K: intrinsic times 0..K; the vocabulary grows by K + 1 classes of the time predictor.
    neodiff.smoothing = 0.1  # Of the anchor's targets.
    neodiff.noise_factor = 1.0
    neodiff.conditioned = (
        0.5  # Share of rows trained with an earlier prediction, where model.self_condition asks for it.
    )
    neodiff.draws = 4

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw, lion, muon, adafactor, schedule_free.
    optimizer.learning_rate = 1e-3  # Peak.
    optimizer.schedule = "cosine"  # cosine, linear, wsd (warm-up, stable, decay) or constant, after the warm-up.
    optimizer.warmup = 0.05  # Share of the updates if below 1, else updates: update u of w has u / w of the peak.
    optimizer.final = 0.1  # Learning rate of the last update, as a share of the peak.
    optimizer.decay_share = 0.2  # wsd: the last share of the updates after the warm-up, which decays.
    # updates: the first update has a rate above 0 and the last has `final`. steps: all of it one update later, so that
    # the first has rate 0 and `final` is never reached, and schedule_free weighs its average by the next update's rate.
    optimizer.counting = "updates"  # before: "steps"
    optimizer.weight_decay = 0.1  # Decoupled; multiplied by the learning rate.
    optimizer.decay_roles = ("kernel", "embedding")  # Parameter roles that decay; norms and biases do not.
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.eps = 1e-8
    optimizer.clip = 1.0  # Global gradient norm; 0 = off.
    optimizer.ema = 0.0  # Decay of an averaged copy of the parameters used for evaluation; 0 = off.
    optimizer.ema_debias = True  # The initial parameters are no part of the average.  # before: False
    # Of parameters narrower than float32. master: updates add to a float32 copy. stochastic: no copy, sums are rounded
    # to one of two neighbours at random. nearest: moments, averages and accumulated gradients are as narrow as the
    # parameters, and small steps are rounded away.
    optimizer.rounding = "master"  # before: "nearest"

    config.train = train = ConfigDict()
    train.steps = 1000
    train.accumulation = 1  # Microbatches a step; the global batch stays data.batch_size.
    train.log_every = 10  # Steps between lines of metrics.jsonl.
    train.profile_step = -1  # First step of a profiler window; -1 = none.
    train.profile_steps = 3
    train.wandb = ""  # A Weights & Biases project; "" = not used.

    config.eval = evaluation = ConfigDict()
    evaluation.every = 500  # Steps; also after the last step. 0 = only then.
    evaluation.batches = 20  # Held-out batches, always the same ones; 0 = the whole split.
    evaluation.batch_size = 0  # 0 = data.batch_size / train.accumulation.
    evaluation.sample_prompt = "def "  # One sample goes to the report at each evaluation; "" = none.
    evaluation.sample_tokens = 200

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 500  # Steps; also after the last step, and on SIGTERM or SIGINT. 0 = only then.
    checkpoint.keep_last = 2
    checkpoint.keep_every = 0  # Steps that are never deleted (multiples); 0 = none.
    checkpoint.keep_best = 0  # Checkpoints with the lowest held-out loss that are kept.

    config.init = ConfigDict()
    config.init.warm_start = ""  # A workdir whose newest parameters start this run (not its optimizer or step).
    config.init.grow_from = ""  # A workdir whose model starts this run with more parameter tokens, its function kept.
    config.init.grow_optimizer = "reset"  # reset (as published), or carry: old rows keep their moments.

    config.mesh = mesh = ConfigDict()  # Devices along each axis; -1 = all that are left (at most one axis).
    mesh.data = -1
    mesh.fsdp = 1
    mesh.tensor = 1
    mesh.context = 1  # Devices that share one sequence; it must divide data.length, see docs/context_parallel.md.

    config.parallel = parallel = ConfigDict()
    # How attention crosses devices that share a sequence (mesh.context > 1), and so the order of tokens in a batch.
    # auto takes, by bytes sent, zigzag or token_ring_zigzag under a causal mask, else ring or token_ring; where a mixer
    # needs another order of tokens, the ring of that order (lact: striped, linear_attention and gated_delta: ring).
    #   all_gather         every device collects all keys and values: simple, memory grows with the whole sequence
    #   ring               keys and values travel; under a causal mask the first device idles half of the time
    #   zigzag             ring, with two pieces a device, so that causal work is equal; length a multiple of 2 context
    #   striped            ring, with every context-th token; equal work too; length a multiple of context
    #   ulysses            heads are exchanged for tokens, once; context must divide num_heads / mesh.tensor
    #   usp                ulysses between neighbours, zigzag between groups; "usp:4" says the size of a group
    #   token_ring         queries travel one way and results the other: half of ring's busiest link without GQA
    #   token_ring_neighbour  the same by neighbours only, results travelling along
    #   token_ring_zigzag  token_ring with the two pieces of zigzag, for causal masks
    parallel.schedule = "auto"

    config.plan = ConfigDict()
    config.plan.search = False  # --mode=plan --topology=...: compile other meshes of the same devices too, rank them.

    config.sharding = ConfigDict()  # Logical axis -> mesh axes ("" = replicated). See models/lm.py for the names.
    config.sharding.batch = ("data", "fsdp")
    config.sharding.sequence = ("context",)  # Or () to leave sequences whole.
    config.sharding.stream = ()  # ("tensor",): between mixers and channels tokens are cut over it too, see machines.md.
    config.sharding.embed = ("fsdp",)
    config.sharding.heads = ("tensor",)
    config.sharding.hidden = ("tensor",)
    config.sharding.tokens = ("tensor",)
    config.sharding.vocab = ("tensor",)

    config.generate = generate = ConfigDict()
    generate.max_tokens = 200
    generate.temperature = 0.8  # 0 = greedy.
    generate.top_k = 0  # 0 = off.
    generate.top_p = 1.0
    generate.min_p = 0.0
    generate.draft = 4  # any_subset: tokens drafted in one call and checked in the next; the law does not change.
    generate.stop = ()  # Strings that end a sample.

    generate.insertion = ConfigDict()
    generate.insertion.stop = "sample"  # sample (a coin of p_stop: the exact law), threshold (as published) or never.
    generate.insertion.threshold = 0.9  # threshold: stops where p_stop is at least this.

    generate.diffusion = denoising = ConfigDict()  # Of diffusion objectives: fills max_tokens masks behind the prompt.
    denoising.method = ""  # "" = the objective's own (ancestral; score_entropy: analytic), else entropy, drawn, ...
    denoising.steps = 0  # Calls of the model for the whole text; 0 = one a token.
    denoising.block = 0  # Tokens filled before the next ones; 0 = all at once, or the blocks of block_diffusion.
    denoising.block_from = (
        "row"  # block: counted from the first token of a row, or of the answer: "prompt" (LLaDA).  # before: "row"
    )
    denoising.grid = "linear"  # ancestral: times of the steps: linear, or cosine (few tokens first).
    denoising.remask = 0.0  # ancestral: share of the largest rate at which tokens become masks again (ReMDM).
    denoising.threshold = 0.9  # threshold: reveals every token at least so sure.
    denoising.factor = 1.0  # factor: reveals n tokens while (n + 1) (1 - confidence) is at most this.
    denoising.guidance = 0.0  # Classifier-free; 0 = off. Doubles the calls.
    denoising.cache = ""  # What is kept between calls: "" = nothing, prefix, dual, free (FreeCache), adaptive.
    denoising.commit = True  # free: one more call on each finished block, so that what is kept is not stale.
    denoising.refresh = 0  # prefix, dual, free: feeds everything every so many calls of a block; 0 = never.
    denoising.adaptive = ConfigDict()  # dLLM-Cache; all at 1 is no cache.
    denoising.adaptive.prompt_every = 50  # Calls between two renewals of the prompt's features.
    denoising.adaptive.answer_every = 7  # Of the answer's.
    denoising.adaptive.share = 0.25  # Of the answer's tokens that are renewed in every other call.
    denoising.guide = ""  # method=guided: the workdir of an autoregressive run that judges drafts.
    denoising.rule = "match"  # guided: a draft stays by match, top_k, threshold, ratio, sample, always or never.
    denoising.suffix = ""  # Text behind the masks: infilling between the prompt and this.
    return config


def choose(key: str, value: str, table: dict):
    """`table[value]`, or a ValueError that names the key, the value and the nearest name."""
    if value in table:
        return table[value]
    near = difflib.get_close_matches(value, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is unknown; {hint}choose one of: {', '.join(table)}.")
