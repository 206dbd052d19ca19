"""Knobs of where a run happens: devices, what is cut over them, and plans."""

from configs.knobs.kinds import group, number, switch, text, texts, whole

mesh = group("Devices along each axis; -1 = all that are left (at most one axis).")
mesh.data = whole(-1, "Rows of a batch.")
mesh.fsdp = whole(1, "Rows of a batch, and parameters.")
mesh.tensor = whole(1, "Heads, hidden widths, parameter tokens, vocabulary.")
mesh.context = whole(1, "Devices that share one sequence; it must divide data.length, see docs/context_parallel.md.")
mesh.expert = whole(1, "Rows of a batch, and experts: each device holds some (model.channel=moe).", before=1)

parallel = group("Sequences over devices.")
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
parallel.schedule = text(
    "auto",
    "How attention crosses devices that share a sequence (mesh.context > 1), and so the order of tokens in a batch: "
    "auto, all_gather, ring, zigzag, striped, ulysses, usp, token_ring, token_ring_neighbour, token_ring_zigzag; "
    "see configs/knobs/run.py.",
)

plan = group("For --mode=plan.")
plan.search = switch(False, "With --topology=...: compile other meshes of the same devices too, rank them.")
plan.price = number(
    0.0, "US dollars an hour of a device; 0 = a list price of experiments/planning/chips.py.", least=0, before=0.0
)

sharding = group('Logical axis -> mesh axes ("" = replicated). See models/lm.py for the names.')
sharding.batch = texts(("data", "fsdp"), "Rows of a batch.")
sharding.sequence = texts(("context",), "Tokens of a row; or () to leave sequences whole.")
sharding.stream = texts((), '("tensor",): between mixers and channels tokens are cut over it too, see machines.md.')
sharding.embed = texts(("fsdp",), "Model width of parameters.")
sharding.heads = texts(("tensor",), "Heads, or any width inside a mixer.")
sharding.hidden = texts(("tensor",), "Hidden widths of channels.")
sharding.experts = texts(
    ("expert",), "Experts; axes that cut no heads, sequences or vocab cut rows, too.", before=("expert",)
)
sharding.tokens = texts(("tensor",), "Parameter tokens.")
sharding.vocab = texts(("tensor",), "Rows of embedding and head.")
