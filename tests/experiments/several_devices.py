"""An experiment that keeps all weights, run by the command line: the tests start it in processes.

``python several_devices.py DEVICES ARGUMENTS…``: with DEVICES above one, the processor plays so
many, which has to be told before TensorFlow or JAX starts.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

TITLE = "Several devices"
QUESTION = "Do several devices make the same steps as one?"
PUBLISHED = None
DISTRIBUTED = True


@dataclass(frozen=True)
class Config:
    steps: int = 8
    seeds: int = 1


PRESETS = {"quick": Config(), "full": Config(steps=9)}


def run_seed(config, seed):
    import keras

    from bnkit.experiments.runs import Runs
    from bnkit.experiments.training import Trainer, draw_batches, fashion_mnist

    data = fashion_mnist(flat=False, train=500)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(
                4, 3, strides=2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1)
            ),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    rate = keras.optimizers.schedules.ExponentialDecay(0.02, 4, 0.9)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    trainer = Trainer(model, optimizer, data.x_train, data.y_train)
    batches = draw_batches(500, 16, config.steps, seed)
    losses = trainer.train(batches)
    runs = Runs(
        lambda: keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
                keras.layers.BatchNormalization(),
            ]
        ),
        keras.optimizers.SGD,
        data.x_train,
        data.y_train,
        seeds=[0, 1],
        rates=[0.01, 0.1],
        steps=config.steps,
    )
    return {
        "runs": runs.train(np.stack([batches, batches], axis=1)),
        "runs_logits": runs.logits(data.x_test[:20]),
        "losses": losses,
        "weights": [each.ravel() for each in model.get_weights()],
        "logits": trainer.predict(data.x_test[:20]),
    }


def main(devices, *arguments):
    from bnkit.experiments import EXPERIMENTS
    from bnkit.experiments.__main__ import main

    if os.environ["KERAS_BACKEND"] == "jax":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    else:
        import tensorflow as tf

        (processor, *_) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * int(devices)
        tf.config.set_logical_device_configuration(processor, parts)
    EXPERIMENTS["several-devices"] = "several_devices"
    return main(["run", "several-devices", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
