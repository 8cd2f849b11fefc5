"""Knowledge distillation: a network learns from the answers of a larger one as well as from the labels.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network": cross-entropy with the teacher's softened
answers, times the temperature squared, so that its gradient keeps its size whatever the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.run import Run


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that answers; `weight` is its share of the loss, `temperature` divides its logits and the student's."""

    model: Any
    weight: float
    temperature: float


def open_teacher(run: Run, student: ModelCard, weight: float, temperature: float) -> Teacher:
    """The full network of a run as a teacher. Raises ConfigError when it answers another question than the student's."""
    if run.card.labels != student.labels:
        raise ConfigError(
            f"--distill {run.folder}: it tells {len(run.card.labels)} classes apart ({', '.join(run.card.labels[:3])}, …), the "
            f"student {len(student.labels)} ({', '.join(student.labels[:3])}, …); teacher and student need the same labels"
        )
    if run.card.image != student.image:
        raise ConfigError(
            f"--distill {run.folder}: it sees pictures as {run.card.image}, the student as {student.image}; train a teacher with "
            f"--image-size {student.image.width}"
        )
    return Teacher(run.model(), weight, temperature)


def taught(student: Any, teacher: Teacher) -> Any:
    """The same layers and weights as a model whose training step asks the teacher about every batch."""
    tf = tensorflow()

    class Taught(keras().Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            pictures, truth, weights = keras().utils.unpack_x_y_sample_weight(data)
            wanted = tf.nn.softmax(tf.cast(teacher.model(pictures, training=False), tf.float32) / teacher.temperature)
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
