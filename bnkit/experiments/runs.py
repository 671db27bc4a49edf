"""Trains many copies of one Keras model: each with its own weights, learning rate and batches.

On JAX the copies train side by side as one program (``vmap`` over the copies, ``scan`` over the
steps), which on a GPU costs little more than one of them; copies with convolutions take turns,
since a convolution with a kernel for each copy is no faster than one after the other. On
TensorFlow they take turns in one compiled ``Trainer``. A test holds the backends together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from bnkit.arguments import Array
from bnkit.experiments import devices
from bnkit.experiments.engines import as_pixels
from bnkit.experiments.statistics import taking_over
from bnkit.experiments.training import STEPS_PER_CALL, Trainer, as_float
from bnkit.keras.probes import cross_entropy

State = list[Array]  # the model's variables, in its order


class Planned(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Learning rates step by step, from a table that can be changed."""

    def __init__(self, steps: int) -> None:
        self.table = keras.Variable(np.zeros(steps, "float32"), trainable=False)

    def __call__(self, step: Any) -> Any:
        """The rate of a step; the last one after the end of the table."""
        return ops.take(self.table, ops.minimum(step, self.table.shape[0] - 1))


class Runs:
    """Copies of one model, made from seeds, that train on one data set.

    Args:
        make_model: makes the model, with one input and logits; called once for each seed.
        make_optimizer: makes the optimizer from a learning rate.
        x: training inputs; bytes are divided by 255.
        y: their labels, int.
        seeds: of the initial weights and of all that is random in the model, one for each run.
        rates: learning rates, shape (runs, steps), or (runs,) where they are constant.
        steps: how many steps there are in all.
        together: train side by side where the backend can; by default all but convolutions.
        jit: whether XLA compiles the steps on TensorFlow, by default as ``Trainer`` does.

    Raises:
        ValueError: shapes that do not fit, or a backend that is neither TensorFlow nor JAX.

    >>> from bnkit.experiments.training import draw_batches, fashion_mnist
    >>> def make_model():
    ...     return keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    >>> data = fashion_mnist(train=1000)
    >>> runs = Runs(make_model, keras.optimizers.SGD, data.x_train, data.y_train, seeds=[0, 0],
    ...             rates=[0.1, 0.0], steps=100)
    >>> runs.train(np.stack([draw_batches(1000, 60, 100, seed=0)] * 2, axis=1)).shape
    (2, 100)
    >>> learned, untrained = runs.accuracy(data.x_test, data.y_test)
    >>> bool(learned > 0.4 > untrained)
    True
    """

    def __init__(
        self,
        make_model: Callable[[], Any],
        make_optimizer: Callable[[Any], Any],
        x: Array,
        y: Array,
        *,
        seeds: Sequence[int],
        rates: ArrayLike,
        steps: int,
        together: bool | None = None,
        jit: bool | None = None,
    ) -> None:
        self.model = make_model()
        self._make_model, self._steps = make_model, steps
        self._begin(seeds, rates)
        backend = keras.backend.backend()
        if backend == "jax":
            turns = any("Conv" in type(each).__name__ for each in self.model._flatten_layers())
            self._engine: Any = _Jax(
                self, make_optimizer, x, y, not turns if together is None else together
            )
        elif backend == "tensorflow":
            self._engine = _TensorFlow(self, make_optimizer, x, y, jit)
        else:
            raise ValueError(f"runs need tensorflow or jax, got the backend {backend}")

    def restart(self, *, seeds: Sequence[int], rates: ArrayLike) -> None:
        """Begin anew with other seeds and rates, in the programs that are compiled already.

        Args:
            seeds: as many as there are runs.
            rates: in the form of those that the runs were made with.
        """
        if len(seeds) != len(self.states):
            raise ValueError(f"seeds must name {len(self.states)} runs, got {len(seeds)}")
        self._begin(seeds, rates)
        self._engine.slots = [self._engine.fresh for _ in seeds]

    def _begin(self, seeds: Sequence[int], rates: ArrayLike) -> None:
        rates, steps = np.asarray(rates, np.float32), self._steps
        rates = rates[:, None] if rates.ndim == 1 else rates
        if rates.ndim != 2 or rates.shape[0] != len(seeds) or rates.shape[1] not in (1, steps):
            raise ValueError(
                f"rates must have shape ({len(seeds)},) or ({len(seeds)}, {steps}) for so many "
                f"seeds and steps; got {rates.shape}"
            )
        self.rates = np.broadcast_to(rates, (len(seeds), steps))
        self.made = 0  # steps so far
        initial: dict[int, State] = {}
        for seed in dict.fromkeys(seeds):
            keras.utils.set_random_seed(seed)
            model = self._make_model()
            initial[seed] = [ops.convert_to_numpy(ops.copy(each)) for each in model.variables]
        self.states: Any = [initial[seed] for seed in seeds]

    def train(self, batches: Array) -> Array:
        """Make one step of each run for each batch.

        Args:
            batches: int32 of shape (steps, runs, batch size), row numbers of the training data.

        Returns:
            The losses before each step, float32 of shape (runs, steps).
        """
        steps = slice(self.made, self.made + len(batches))
        if steps.stop > self.rates.shape[1]:
            raise ValueError(
                f"batches must hold at most {self.rates.shape[1] - self.made} more steps, "
                f"got {len(batches)}"
            )
        self.made = steps.stop
        return self._engine.train(batches, self.rates[:, steps])

    def recomputed(
        self, x: Array | None = None, *, rows: Array | None = None, drop: bool = False
    ) -> list[State]:
        """The runs with precise statistics: those of x as one batch, weights held still.

        Args:
            x: inputs like those of the training, for all runs alike.
            rows: in place of x, row numbers of the training data, int of shape (runs, rows).
            drop: whether dropout drops meanwhile, as in training.

        Returns:
            States to hand to ``logits``, ``accuracy`` and ``load``.
        """
        with taking_over(self.model, drop=drop):
            return self._engine.recomputed(None if x is None else as_float(x), rows, drop)

    def logits(
        self,
        x: Array,
        *,
        states: Sequence[State] | None = None,
        training: bool = False,
        batch_size: int = 1000,
    ) -> Array:
        """The logits of each run, float32 of shape (runs, rows, classes); nothing is changed.

        Args:
            x: inputs like those of the training.
            states: those of the runs as they are, when None.
            training: normalize each batch by its own statistics.
            batch_size: rows at a time; in training mode the result depends on it.
        """
        parts = [as_float(x[k : k + batch_size]) for k in range(0, len(x), batch_size)]
        return self._engine.logits(parts, self.states if states is None else states, training)

    def accuracy(self, x: Array, y: Array, **how: Any) -> Array:
        """The fraction of rows that each run gets right, shape (runs,); see ``logits``."""
        return (self.logits(x, **how).argmax(axis=-1) == y).mean(axis=1)

    def stacked(self) -> list[Any]:
        """The variables of all runs, one array each, the runs along the first axis."""
        return _stacked(self.states)

    def load(self, run: int, states: Sequence[State] | None = None) -> Any:
        """The model with the variables of one run, to look into."""
        for variable, value in zip(
            self.model.variables, (self.states if states is None else states)[run], strict=True
        ):
            variable.assign(value)
        return self.model


class _TensorFlow:
    """One run after the other, in one compiled trainer."""

    def __init__(
        self, runs: Runs, make_optimizer: Any, x: Array, y: Array, jit: bool | None
    ) -> None:
        self.runs, self.x_train = runs, x
        self.plan = Planned(runs.rates.shape[1])
        self.optimizer = make_optimizer(self.plan)
        self.trainer = Trainer(runs.model, self.optimizer, x, y, jit=jit)
        self.fresh = [each.numpy() for each in self.optimizer.variables]
        self.slots = [self.fresh for _ in runs.states]

    def train(self, batches: Array, rates: Array) -> Array:
        losses = []
        for run in range(len(self.runs.states)):
            self.runs.load(run)
            self.plan.table.assign(self.runs.rates[run])
            for variable, value in zip(self.optimizer.variables, self.slots[run], strict=True):
                variable.assign(value)
            losses.append(self.trainer.train(batches[:, run]))
            self.runs.states[run] = [each.numpy() for each in self.runs.model.variables]
            self.slots[run] = [each.numpy() for each in self.optimizer.variables]
        return np.array(losses)

    def recomputed(self, x: Array | None, rows: Array | None, drop: bool) -> list[State]:
        found = []
        for run in range(len(self.runs.states)):
            model = self.runs.load(run)
            model(x if rows is None else as_float(self.x_train[rows[run]]), training=True)
            found.append([each.numpy() for each in model.variables])
        return found

    def logits(self, parts: list[Array], states: Sequence[State], training: bool) -> Array:
        x, size, found = np.concatenate(parts), len(parts[0]), []
        for run in range(len(states)):
            self.runs.load(run, states)
            found.append(self.trainer.predict(x, training=training, batch_size=size))
        return np.array(found)


class _Jax:
    """All runs in one program, or one after the other."""

    def __init__(self, runs: Runs, make_optimizer: Any, x: Array, y: Array, together: bool) -> None:
        import jax

        self.runs, self.together = runs, together
        optimizer = make_optimizer(0.0)
        optimizer.build(runs.model.trainable_variables)
        self.fresh = [np.asarray(each.value) for each in optimizer.variables]
        self.slots: Any = [self.fresh for _ in runs.states]
        place = next(
            k for k, each in enumerate(optimizer.variables) if each is optimizer._learning_rate
        )
        model, x_train, y_train = runs.model, jax.numpy.asarray(x), jax.numpy.asarray(y)
        is_trained = [each.trainable for each in model.variables]

        def step(state: Any, now: Any) -> Any:
            (values, slots), (rows, rate) = state, now
            inputs = as_pixels(x_train[rows], x.dtype == np.uint8)

            def loss(trained: Any) -> Any:
                logits, moved, penalties = self._call(trained, self._rest(values), inputs, True)
                value = cross_entropy(y_train[rows], ops.cast(logits, "float32"))
                return value + sum(penalties), moved

            trained = [v for v, is_one in zip(values, is_trained, strict=True) if is_one]
            (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
            slots = [rate if k == place else each for k, each in enumerate(slots)]
            trained, slots = optimizer.stateless_apply(slots, gradient, trained)
            return (self._merged(trained, rest), slots), value

        def recompute(values: Any, now: Any) -> Any:
            inputs = now
            if jax.numpy.issubdtype(now.dtype, jax.numpy.integer):  # row numbers
                inputs = as_pixels(x_train[now], x.dtype == np.uint8)
            trained = [v for v, is_one in zip(values, is_trained, strict=True) if is_one]
            _, rest, _ = self._call(trained, self._rest(values), inputs, True)
            return self._merged(trained, rest)

        def infer(training: bool, values: Any, inputs: Any) -> Any:
            trained = [v for v, is_one in zip(values, is_trained, strict=True) if is_one]
            logits, _, _ = self._call(trained, self._rest(values), inputs, training)
            return ops.cast(logits, "float32")

        self._is_trained = is_trained
        vmap = jax.vmap if together else (lambda function, in_axes=0: function)
        every = vmap(step)
        self._steps = jax.jit(lambda state, now: jax.lax.scan(every, state, now))
        self._recompute = recompute
        self._compiled: dict[tuple[bool, bool], Any] = {}  # by what takes over
        self._infer = [
            jax.jit(vmap(functools.partial(infer, mode), in_axes=(0, None)))
            for mode in (False, True)
        ]

    def _rest(self, values: Any) -> Any:
        return [v for v, is_one in zip(values, self._is_trained, strict=True) if not is_one]

    def _merged(self, trained: Any, rest: Any) -> Any:
        trained, rest = iter(trained), iter(rest)
        return [next(trained) if is_one else next(rest) for is_one in self._is_trained]

    def _call(self, trained: Any, rest: Any, inputs: Any, training: bool) -> Any:
        """Logits, the variables that are not trained as they are afterwards, and penalties."""
        return self.runs.model.stateless_call(
            trained, rest, inputs, training=training, return_losses=True
        )

    def train(self, batches: Array, rates: Array) -> Array:
        losses = []
        for start in range(0, len(batches), STEPS_PER_CALL):
            part = slice(start, start + STEPS_PER_CALL)
            losses.append(self._in_groups(batches[part], rates.T[part]))
        return np.concatenate(losses, axis=1)

    def _in_groups(self, batches: Any, rates: Array) -> Array:
        """Up to 100 steps of all runs; losses of shape (runs, steps)."""
        runs, batches = self.runs, devices.spread(batches)
        if self.together:
            state = _stacked(runs.states), _stacked(self.slots)
            state, losses = self._steps(state, (batches, rates))
            runs.states, self.slots = _Stack(state[0]), _Stack(state[1])
            return np.asarray(losses).T
        losses = []
        for run in range(len(runs.states)):
            state = runs.states[run], self.slots[run]
            state, found = self._steps(state, (batches[:, run], rates[:, run]))
            runs.states[run], self.slots[run] = state
            losses.append(found)
        return np.array([np.asarray(each) for each in losses])

    def recomputed(self, x: Array | None, rows: Array | None, drop: bool) -> Any:
        """One run after the other: side by side their activations would need much memory."""
        import jax

        def every(states: Any, now: Any) -> Any:
            if rows is None:
                return jax.lax.map(lambda state: self._recompute(state, now), states)
            return jax.lax.map(lambda run: self._recompute(*run), (states, now))

        how = drop, rows is None
        if how not in self._compiled:  # a new function, traced with the layers that take over
            one = functools.partial(self._recompute)
            self._compiled[how] = jax.jit(every if self.together else one)
        call = self._compiled[how]
        now: Any = x if rows is None else rows
        if self.together:
            return _Stack(call(_stacked(self.runs.states), now))
        return [
            call(state, now if rows is None else now[k]) for k, state in enumerate(self.runs.states)
        ]

    def logits(self, parts: list[Array], states: Any, training: bool) -> Array:
        infer = self._infer[training]
        if self.together:
            stacked = _stacked(states)
            return np.concatenate([np.asarray(infer(stacked, x)) for x in parts], axis=1)
        return np.array(
            [np.concatenate([np.asarray(infer(state, x)) for x in parts]) for state in states]
        )


class _Stack(Sequence[State]):
    """States that lie on the device as one array a variable, the runs along the first axis."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, run: Any) -> Any:
        return [each[run] for each in self.arrays]

    def __iter__(self) -> Iterator[State]:  # an index beyond the end is no error on JAX
        return (self[run] for run in range(len(self)))


def _stacked(states: Any) -> list[Any]:
    """The same as one array a variable."""
    if isinstance(states, _Stack):
        return list(states.arrays)
    return [np.stack(each) for each in zip(*states, strict=True)]
