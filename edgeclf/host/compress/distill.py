"""Knowledge distillation: a network learns from the answers of a larger one as well as from the labels.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network": cross-entropy with the teacher's softened
answers, times the temperature squared, so that its gradient keeps its size whatever the temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import ImageSpec
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.run import Run


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that answers; `weight` is its share of the loss, `temperature` divides its logits and the student's.

    `sees` turns a batch as the student sees it into what the teacher was trained on; None where both see the same.
    """

    model: Any
    weight: float
    temperature: float
    sees: Callable[[Any], Any] | None = None

    def logits(self, pictures: Any) -> Any:
        """What it answers, float32 (pictures, classes), to pictures (pictures, height, width, channels) of the student's."""
        shown = pictures if self.sees is None else self.sees(pictures)
        return tensorflow().cast(self.model(shown, training=False), "float32")


def open_teacher(run: Run, student: ModelCard, weight: float, temperature: float) -> Teacher:
    """The full network of a run as a teacher. Raises ConfigError when it answers another question than the student's.

    A teacher of another size or normalisation, as a transfer backbone is for a small network, sees the student's pictures
    scaled (bilinear) to its own.
    """
    if run.card.labels != student.labels:
        raise ConfigError(
            f"--distill {run.folder}: it tells {len(run.card.labels)} classes apart ({', '.join(run.card.labels[:3])}, …), the "
            f"student {len(student.labels)} ({', '.join(student.labels[:3])}, …); teacher and student need the same labels"
        )
    mine, its = student.image, run.card.image
    if (its.fit, its.colour) != (mine.fit, mine.colour):
        raise ConfigError(
            f"--distill {run.folder}: it sees pictures by {its.fit} in {its.colour}, the student by {mine.fit} in {mine.colour}; "
            "teacher and student need the same of both"
        )
    return Teacher(run.model(), weight, temperature, None if its == mine else _scaled(mine, its))


def _scaled(mine: ImageSpec, its: ImageSpec) -> Callable[[Any], Any]:
    """From the student's pictures to the teacher's, both normalised."""
    tf = tensorflow()

    def scaled(pictures: Any) -> Any:
        pixels = tf.image.resize(tf.cast(pictures, tf.float32), (its.height, its.width), antialias=True) * mine.std + mine.mean
        return (pixels - its.mean) / its.std

    return scaled


def taught(student: Any, teacher: Teacher) -> Any:
    """The same layers and weights as a model whose training step asks the teacher about every batch."""
    tf = tensorflow()

    class Taught(keras().Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            pictures, truth, weights = keras().utils.unpack_x_y_sample_weight(data)
            wanted = tf.nn.softmax(teacher.logits(pictures) / teacher.temperature)
            with tf.GradientTape() as tape:
                logits = self(pictures, training=True)
                hard = self.compute_loss(pictures, truth, logits, weights)
                total = (1 - teacher.weight) * hard + teacher.weight * softened(wanted, logits, teacher.temperature)
            self.optimizer.minimize(total, self.trainable_variables, tape=tape)
            return self.compute_metrics(pictures, truth, logits, weights)

    return Taught(student.input, student.output, name=student.name)


def softened(wanted: Any, logits: Any, temperature: float) -> Any:
    """Cross-entropy of logits (pictures, classes) with the teacher's distribution, both softened, times temperature squared."""
    tf = tensorflow()
    logs = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
    return -(temperature**2) * tf.reduce_mean(tf.reduce_sum(wanted * logs, axis=-1))
