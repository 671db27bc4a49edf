"""Run the batch normalization of each framework, by its defaults, on arrays."""

import importlib
import inspect
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from bnkit.conventions import FLAX, KERAS, KERAS_2, ONNX, TORCH


def need(module):
    """Import a module, whatever it warns of, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, reason=f"{module} is not installed")


@dataclass
class Run:
    """What one call gave: the output, and the moving statistics after it."""

    y: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Keras:
    """The layer of Keras 3; its default mode, or the one that is asked for."""

    module = "keras"

    def __init__(self):
        self.layer = need(self.module).layers.BatchNormalization()
        self.epsilon, self.momentum = self.layer.epsilon, self.layer.momentum
        self.arguments = inspect.signature(type(self.layer).call).parameters

    def freeze(self):
        self.layer.trainable = False

    def __call__(self, x, training=None):
        y = self.layer(x) if training is None else self.layer(x, training=training)
        return Run(np.asarray(y), *map(np.asarray, self.layer.get_weights()[2:]))

    def load(self, weights, x):
        self.layer.build(x.shape)
        self.layer.set_weights(weights)


class Keras2(Keras):
    """The layer of Keras 2, from the package tf-keras."""

    module = "tf_keras"


class Torch:
    """The module of PyTorch for the rank of the input."""

    def __init__(self):
        self.torch = need("torch")
        self.layer = None
        self.frozen = False
        default = self.torch.nn.BatchNorm1d(1)
        self.epsilon, self.momentum = default.eps, default.momentum
        self.arguments = inspect.signature(type(default).forward).parameters

    def freeze(self):
        self.frozen = True

    def build(self, x):
        kinds = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        self.layer = getattr(self.torch.nn, kinds[x.ndim])(x.shape[1])
        self.layer.requires_grad_(not self.frozen)

    def __call__(self, x, training=None):
        if self.layer is None:
            self.build(x)
        if training is not None:
            self.layer.train(training)
        y = self.layer(self.torch.from_numpy(x)).detach().numpy()
        return Run(y, self.layer.running_mean.numpy(), self.layer.running_var.numpy())

    def load(self, state, x):
        self.build(x)
        tensors = {name: self.torch.from_numpy(value) for name, value in state.items()}
        self.layer.load_state_dict(tensors)


class Flax:
    """The module of flax.linen."""

    def __init__(self):
        self.linen, self.jax = need("flax.linen"), need("jax")
        default = self.linen.BatchNorm()
        self.epsilon, self.momentum = default.epsilon, default.momentum
        self.arguments = inspect.signature(self.linen.BatchNorm.__call__).parameters
        self.weights = None

    def __call__(self, x, training=None):
        layer = self.linen.BatchNorm(None if training is None else not training)
        x = self.jax.numpy.asarray(x)
        weights = self.weights or layer.init(self.jax.random.key(0), x)
        y, updated = layer.apply(weights, x, mutable=["batch_stats"])
        self.weights = {**weights, **updated}
        stored = self.weights["batch_stats"]
        return Run(*map(np.asarray, (y, stored["mean"], stored["var"])))

    def load(self, weights, x):
        self.weights = weights


class Onnx:
    """The operator of ONNX, by the reference implementation; a state is carried along."""

    inputs = ("scale", "B", "input_mean", "input_var")

    def __init__(self):
        self.onnx = need("onnx")
        importlib.import_module("onnx.reference")
        attributes = self.onnx.defs.get_schema("BatchNormalization").attributes
        defaults = {name: each.default_value for name, each in attributes.items()}
        # float32 numbers, which the schema hands out
        self.epsilon, self.momentum = (
            float(f"{defaults[key].f:.6g}") for key in ("epsilon", "momentum")
        )
        self.arguments = {
            each.name for each in self.onnx.defs.get_schema("BatchNormalization").inputs
        }
        self.weights = None

    def __call__(self, x, training=None):
        if self.weights is None:
            ones, zeros = np.ones(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
            self.weights = dict(zip(self.inputs, (ones, zeros, zeros, ones), strict=True))
        helper, proto = self.onnx.helper, self.onnx.TensorProto
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        names = ["X", *self.inputs]
        results = ["Y", "mean", "variance"] if training else ["Y"]
        mode = {} if training is None else {"training_mode": int(training)}

        def info(name):
            return helper.make_tensor_value_info(name, kind if name in "XY" else proto.FLOAT, None)

        node = helper.make_node("BatchNormalization", names, results, **mode)
        graph = helper.make_graph([node], "one", [*map(info, names)], [*map(info, results)])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
        y, *stored = self.onnx.reference.ReferenceEvaluator(model).run(
            None, {"X": x, **self.weights}
        )
        if stored:
            self.weights |= dict(zip(self.inputs[2:], stored, strict=True))
        return Run(y, self.weights["input_mean"], self.weights["input_var"])

    def load(self, weights, x):
        self.weights = dict(weights)


ADAPTERS = [(KERAS, Keras), (KERAS_2, Keras2), (TORCH, Torch), (FLAX, Flax), (ONNX, Onnx)]


@pytest.fixture(params=ADAPTERS, ids=lambda pair: pair[0].name)
def peer(request):
    """A convention, and what makes a fresh layer of its framework."""
    convention, adapter = request.param
    adapter()  # skips where the framework is not installed
    return convention, adapter


@pytest.fixture
def fresh():
    """What makes a fresh layer, by the name that ``convert`` gives to its format."""
    return {"keras": Keras, "torch": Torch, "flax": Flax, "onnx": Onnx}
