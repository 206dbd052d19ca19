"""What a config means, built once: the model's structure, the state it trains, where that lies, and the compiled step.

The state is one pytree of arrays:

    {"step": int32, "rng": uint32 key data, "params": {...}, "optimizer": optax state}

and, when asked for, "ema" (the averaged parameters), "averaged" (how many updates are in it) and "master" (a float32
copy of parameters that are stored in fewer bits: see experiments.program.precision).

Parameters are a plain dict; the model object exists only inside a trace, by `merge(params)`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from experiments.program import companions as beside
from experiments.program import compiling, freezing, optimizers, precision, sharding
from kernels import context_attention
from models import kinds, objectives, reports, running
from models.lm import LM
from models.objectives import OBJECTIVES
from models.partition import Partition
from models.spec import Spec

ROUNDING = 2**31 - 1  # Folded into the key of an update for the bits that round its parameters.


def objective(name: str) -> Any:
    """What `config.objective` names, as far as it does not depend on its options; see models/objectives."""
    return OBJECTIVES[name]


def make_objective(config: Any, vocab_size: int) -> Any:
    """What `config.objective` names, with its options, for a tokenizer of `vocab_size` ids."""
    return objectives.make(config.objective, config.to_dict().get(config.objective, {}), vocab_size=vocab_size)


@dataclasses.dataclass(frozen=True)
class Program:
    """A config made concrete for one mesh; `build` makes it without allocating a single parameter."""

    config: Any
    spec: Spec
    mesh: Mesh
    objective: Any
    optimizer: optax.GradientTransformation
    merge: Callable[[Any], LM]  # parameters -> model, inside a trace
    abstract: Any  # the state's shapes and dtypes
    shardings: Any  # the state's NamedShardings
    axes: Any  # logical axes of each parameter
    roles: Any  # role of each parameter
    fixed: Any  # whether `optimizer.freeze` holds it, of each parameter
    decoder: Callable[[Any], LM]  # `merge` for generation: sequences are whole on every device, in their order
    rows: tuple[int, int]  # (i, n): this process reads the i-th of n parts of the rows of a batch
    companions: Mapping[str, "Program"]  # trained models that the objective reads; {} until they are attached

    def init(self) -> Any:
        """The state at step 0, created sharded: no parameter ever exists whole on one device."""
        return self.jit(self._init, out_shardings=self.shardings)(jax.random.key(self.config.seed))

    def jit(self, fn: Callable, **options: Any) -> Callable:
        """`jax.jit(fn, **options)` with what every program asks of the compiler for this mesh."""
        return jax.jit(fn, compiler_options=compiling.options(self.mesh), **options)

    def _init(self, key: jax.Array) -> Any:
        init_key, train_key = jax.random.split(key)
        return self._begin(self.initial(init_key), train_key)

    def initial(self, key: jax.Array) -> Any:
        """The initial parameters, inside a trace."""
        heads = objectives.heads(self.objective, self.spec)
        return nnx.to_pure_dict(nnx.state(kinds.make(self.spec, rngs=nnx.Rngs(params=key), heads=heads), nnx.Param))

    def begin(self, params: Any) -> Any:
        """The state at step 0 with these parameters in place of the initial ones."""
        train_key = jax.random.split(jax.random.key(self.config.seed))[1]
        return self.jit(self._begin, out_shardings=self.shardings)(params, train_key)

    def _begin(self, params: Any, train_key: jax.Array) -> Any:
        state = {
            "step": jnp.zeros((), jnp.int32),
            "rng": jax.random.key_data(train_key),
            "params": params,
            "optimizer": self.optimizer.init(freezing.trained(self.fixed, self._wide({"params": params}))),
        }
        options = self.config.optimizer
        if options.rounding == "master" and precision.narrow(params):
            state["master"] = precision.widened(freezing.trained(self.fixed, params))
        if options.ema:
            state["ema"] = self._wide({"params": params})
            if options.ema_debias:
                state["averaged"] = jnp.zeros((), jnp.int32)
        return state

    def _wide(self, state: Any) -> Any:
        """The parameters that updates are added to and averages are taken of: float32 unless all sums are narrow.

        What `optimizer.freeze` holds is as it is stored.
        """
        params = state["params"]
        if "master" not in state and self.config.optimizer.rounding == "nearest":
            return params
        some = state["master"] if "master" in state else precision.widened(freezing.trained(self.fixed, params))
        return freezing.whole(self.fixed, some, params)

    def train_step(self) -> Callable[[Any, dict], tuple[Any, dict]]:
        """`(state, batch) -> (state, metrics)`, jitted, the old state donated.

        Where the objective reads companions it is `(state, batch, companions)`: see `step`.
        """
        batch, more = sharding.batch_sharding(self.config, self.mesh), beside.shardings(self)
        return jax.jit(
            self.step,
            donate_argnums=0,
            in_shardings=(self.shardings, batch, *([more] if more else [])),
            out_shardings=(self.shardings, sharding.replicated(self.mesh)),
            compiler_options=compiling.step_options(self.mesh),
        )

    def step(self, state: Any, batch: dict, companions: Mapping[str, Any] | None = None) -> tuple[Any, dict]:
        """`train_step` as a plain function, for programs around it.

        `companions`: the parameters of each of `self.companions`, by its name; None where there are none.
        """
        beside.check(self)
        told = {name: self.companions[name].merge(companions[name]) for name in self.companions}
        told = {"companions": told} if told else {}
        params = state["params"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
        batch = self.objective.corrupt(batch, key)
        total = jnp.maximum(jnp.sum(batch["scored"], dtype=jnp.float32), 1.0)

        def loss_fn(some: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
            model = self.merge(running.held(self.roles, freezing.whole(self.fixed, some, at)))
            out = self.objective.loss(model, batch, key, **told, **self.config.loss.to_dict())
            loss = reports.with_losses(out.total, out.report)
            return loss / total, {"loss": loss, "means": out.means, "report": out.report}

        # At the stored values, but with gradients as wide as the sums that they go into.
        at = self._wide({"params": params})
        some = freezing.trained(self.fixed, at)
        grads, sums = self._accumulate(jax.grad(loss_fn, has_aux=True), some, batch, key)
        wide = self._wide(state)
        some = freezing.trained(self.fixed, wide)
        updates, optimizer = self.optimizer.update(grads, state["optimizer"], some)
        wide = freezing.whole(self.fixed, optax.apply_updates(some, updates), wide)
        wide = running.put(wide, running.advance(self.merge(wide), sums["report"]))
        new = {"step": state["step"] + 1, "rng": state["rng"], "params": self._stored(wide, params, key)}
        new["optimizer"] = optimizer
        if "master" in state:
            new["master"] = freezing.trained(self.fixed, wide)
        if "ema" in state:
            average, more = optimizers.average(self.config.optimizer, state["ema"], state.get("averaged"), wide)
            new |= {"ema": optimizers.keep_untrained(self.untrained, average, wide), **more}
        metrics = {"train/loss": sums["loss"] / total}
        metrics |= {f"train/{name}": mean.value for name, mean in sums["means"].items()}
        metrics |= {f"train/report/{name}": x for name, x in reports.summary(sums["report"], total).items()}
        metrics |= reports.by_layer(running.figures(self.merge(params), sums["report"]))
        metrics["train/grad_norm"] = optax.global_norm(grads)
        metrics["train/learning_rate"] = optimizers.schedule(self.config.optimizer, self.config.train.steps)(
            state["step"]
        )
        return new, metrics

    def _stored(self, wide: Any, params: Any, key: jax.Array) -> Any:
        """`wide` in the types of `params`, as `optimizer.rounding` says; `key` is that of this update."""
        if self.config.optimizer.rounding == "stochastic" and precision.narrow(params):
            return precision.rounded_at_random(wide, params, jax.random.fold_in(key, ROUNDING))
        return precision.like(wide, params)

    def _accumulate(self, grad: Callable, params: Any, batch: dict, key: jax.Array) -> tuple[Any, dict]:
        """Gradients and sums over the global batch, in `train.accumulation` microbatches of interleaved rows."""
        parts = self.config.train.accumulation
        if parts == 1:
            return grad(params, batch, key)
        # Row i goes to microbatch i % parts, so that every device keeps its own rows and nothing moves.
        micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], micro), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total: Any, inputs: tuple) -> tuple[Any, None]:
            now = running.put(params, running.within(self.merge(params), total[1]["report"]))
            return jax.tree.map(jnp.add, total, grad(now, *inputs)), None

        return jax.lax.scan(add, zeros, (micro, keys))[0]

    @property
    def untrained(self) -> Any:
        """Role of each parameter, "frozen" where the config holds it."""
        return jax.tree.map(lambda held, role: "frozen" if held else role, self.fixed, self.roles)

    def evaluation_params(self, state: Any) -> Any:
        """The parameters that evaluation, samples and export use: the average when there is one."""
        if "ema" in state:
            return precision.like(state["ema"], state["params"])
        wide = self._wide(state)
        some = freezing.trained(self.fixed, wide)
        some = optimizers.evaluation_params(self.config.optimizer, state["optimizer"], some)
        params = precision.like(freezing.whole(self.fixed, some, wide), state["params"])
        return optimizers.keep_untrained(self.untrained, params, state["params"])


def build(config, *, vocab_size: int, mesh: Mesh) -> Program:
    """Everything about a run that is known before a parameter exists. ValueErrors name the key of the config."""
    goal = make_objective(config, vocab_size)
    partition = Partition(mesh, sharding.rules(config), sharding.schedule(config, mesh.shape, goal.mask))
    spec = Spec.from_config(config.model.to_dict(), vocab_size=vocab_size + goal.extra_tokens, partition=partition)
    graphdef, variables = _structure(spec, goal)
    decoder = _structure(dataclasses.replace(spec, partition=partition.without("sequence")), goal)[0]
    # A stacked parameter carries one more dimension than it was made with: the layers.
    axes = jax.tree.map(_full_axes, variables, is_leaf=_is_variable)
    roles = jax.tree.map(lambda v: v.get_metadata("role"), variables, is_leaf=_is_variable)
    axes, roles, params = (nnx.to_pure_dict(tree) for tree in (axes, roles, variables))
    rates = jax.tree.map(spec.sizes.rate, roles, axes)
    fixed = freezing.held(config.optimizer.freeze, roles)
    moved = (freezing.trained(fixed, tree) for tree in (roles, rates))
    optimizer = optimizers.make(config.optimizer, config.train.steps, *moved)
    program = Program(
        config=config,
        spec=spec,
        mesh=mesh,
        objective=goal,
        optimizer=optimizer,
        merge=lambda params: nnx.merge(graphdef, params),
        abstract=None,
        shardings=None,
        axes=axes,
        roles=roles,
        fixed=fixed,
        decoder=lambda params: nnx.merge(decoder, params),
        rows=sharding.own_rows(config, mesh),
        companions={},
    )
    abstract = jax.eval_shape(program._init, jax.random.key(0))
    placed = sharding.parameter_shardings(params, axes, config, mesh)
    shardings = sharding.like_parameters(abstract, params, placed, mesh)
    return dataclasses.replace(program, abstract=abstract, shardings=shardings)


def _structure(spec: Spec, goal: Any) -> tuple[Any, Any]:
    """What a model with the heads of its objective is but its numbers, and the shapes of those."""
    heads = objectives.heads(goal, spec)
    return nnx.split(nnx.eval_shape(lambda: kinds.make(spec, rngs=nnx.Rngs(0), heads=heads)), nnx.Param)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _full_axes(variable: nnx.Variable) -> tuple[str | None, ...]:
    axes = variable.get_metadata("axes")
    return ("layers",) * (len(variable.shape) - len(axes)) + axes


def global_batch(batch: dict, program: Program) -> dict:
    """This process's rows of a batch (see `program.rows`) as global arrays, their tokens as the schedule wants them."""
    placed, (part, parts) = sharding.batch_sharding(program.config, program.mesh), program.rows
    batch = in_order(batch, program.spec.partition)
    if jax.process_count() == 1:
        return jax.device_put(batch, placed)

    def place(mine: np.ndarray) -> jax.Array:
        first, shape = part * len(mine), (parts * len(mine), *mine.shape[1:])

        def cut(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return mine[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback(shape, placed, cut)

    return {name: place(mine) for name, mine in batch.items()}


def in_order(batch: dict, partition: Partition) -> dict:
    """A batch of `[B, T]` arrays with its tokens in the order of the schedule that crosses the cuts of a sequence.

    This is the one place where tokens change places. `order [B, T]` says which place of its row each token had.
    """
    if not partition.schedule:
        return batch
    B, T = batch["tokens"].shape
    order = context_attention.positions(T, partition.ways("sequence"), partition.schedule)
    if np.array_equal(order, np.arange(T)):
        return batch
    rows = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return {name: array[:, order] for name, array in ({"positions": rows} | batch | {"order": rows}).items()}
