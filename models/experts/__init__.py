"""Mixture of experts: formulas as plain functions of arrays.

    routing     what a router decides, and what is read off it
    routers     softmax before or after the choice, sigmoid with bias, groups, MoGE, expert choice, ReLU
    mixed       routers beside experts that cost nothing: MoE++, AdaMoE; Duo-LLM's two sizes
    graph       probabilities averaged over similar tokens
    balance     losses of the load by scope, z-loss, biases
    sparsity    BlockFFN's losses, measures and schedule
    capacity    how many tokens an expert takes, and which
    banks       the experts
    dispatch    tokens to their experts and back: dense, einsum, sorted
    upcycling   experts out of a trained dense layer

The channel `moe` is made of them:

    channel     the layer
    options     routers by name, kinds of experts, what does not go together
    parallel    dispatch where a mesh cuts tokens, experts or widths
    told        losses and figures of the report
    dense_start a dense model as a mixture with the same function

docs/moe.md lists every function with its equation. Letters: T tokens, E experts, K chosen for a token, D width of the
model, F hidden width of an expert. Functions take numpy arrays or jax's, compute in float32 or wider, and stay in
float64 where their input is.
"""
