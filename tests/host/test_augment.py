"""Augmentation: what each policy does to pixels and labels, that the seed alone decides, and that what is off is not there."""

import hashlib

import numpy as np
import pytest

from edgeclf.core.recipe import AugmentationSection
from edgeclf.host.augment import colour_ops, randaugment, warp
from edgeclf.host.augment.augment import augment, mix, normalise
from edgeclf.host.keras import tensorflow

OFF = {"flip": False, "shift": 0.0}
POLICIES = {
    "rotate": 30.0, "zoom": 0.3, "shear": 0.3, "colour": 0.5, "cutout": 0.4, "randaugment": 2,
}  # fmt: skip
SEED = np.array([1, 2], np.int32)


def noise(*shape):
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def only(**changes):
    return AugmentationSection(**{**OFF, **changes})


def changed(pictures, section, seed=SEED):
    return augment(pictures, seed, section).numpy()


def test_flip_and_shift_give_the_very_pixels_that_they_gave_to_earlier_runs():
    """Digests of what the first release computed: a recipe trains to the same weights again."""
    wanted = {"e1c67e1d38da49b9": AugmentationSection(), "5f2622c8f611ec38": AugmentationSection(flip=False)}
    for digest, section in wanted.items():
        found = changed(noise(64, 32, 32, 3), section)
        assert hashlib.blake2b(found.tobytes(), digest_size=8).hexdigest() == digest


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_policy_changes_pixels_by_its_seed_alone_and_keeps_shape_and_type(policy, channels):
    """Colour and grey, in a graph that does not know the size of the batch."""
    tf, pictures = tensorflow(), noise(9, 12, 16, channels)
    section = only(**{policy: POLICIES[policy]})
    spec = [tf.TensorSpec((None, 12, 16, channels), tf.uint8), tf.TensorSpec((2,), tf.int32)]
    graph = tf.function(lambda p, s: augment(p, s, section), input_signature=spec, autograph=False)
    one, again, other = (graph(pictures, tf.constant([1, number])).numpy() for number in (5, 5, 6))
    assert (one.shape, one.dtype) == (pictures.shape, np.uint8)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, pictures)


def test_what_is_off_is_not_in_the_graph():
    """Nothing on: no operation at all; flip and shift: no sampling between pixels."""
    tf = tensorflow()

    def kinds(section):
        graph = tf.function(lambda p: augment(p, SEED, section)).get_concrete_function(tf.TensorSpec((8, 8, 8, 3), tf.uint8))
        return {operation.type for operation in graph.graph.get_operations()}

    assert kinds(only()) <= {"Placeholder", "Identity"}
    assert "ImageProjectiveTransformV3" not in kinds(AugmentationSection())
    assert "ImageProjectiveTransformV3" in kinds(AugmentationSection(rotate=5))


def test_switching_a_policy_on_leaves_what_the_others_draw():
    """Beside the grey square of cutout, flip and shift are as without it; a rotation by nothing moves nothing else."""
    pictures = np.maximum(noise(16, 32, 32, 3), 129)  # no pixel has the grey of cutout
    plain, cut = changed(pictures, AugmentationSection()), changed(pictures, AugmentationSection(cutout=0.4))
    grey = (cut == 128).all(axis=3)
    assert 0.02 < grey.mean() < 0.16
    assert np.array_equal(cut[~grey], plain[~grey])
    sampled = changed(pictures, AugmentationSection(rotate=1e-9))
    assert np.array_equal(sampled[:, 4:-4, 4:-4], plain[:, 4:-4, 4:-4])  # borders are reflected about the edge or the pixel


def test_moves_are_those_that_their_names_say():
    """A quarter turn, a flip, a shift and a zoom by two, against NumPy."""
    picture = noise(1, 8, 8, 3)
    one = np.ones(1, np.float32)
    turned = warp.sample(picture, [warp.about_the_middle(8, 8, 90 * one, one, 0 * one)]).numpy()
    assert np.array_equal(turned[0], np.rot90(picture[0], 1)) or np.array_equal(turned[0], np.rot90(picture[0], -1))
    assert np.array_equal(warp.sample(picture, [warp.flip(one > 0, 8)]).numpy(), picture[:, :, ::-1])
    shifted = warp.sample(picture, [warp.shift(2 * one, 1 * one)]).numpy()
    assert np.array_equal(shifted[:, :-1, :-2], picture[:, 1:, 2:])
    ramp = np.repeat(np.arange(0, 80, 10, dtype=np.uint8)[None, None, :, None], 8, axis=1)
    enlarged = warp.sample(ramp, [warp.about_the_middle(8, 8, 0 * one, one / 2, 0 * one)]).numpy()
    assert np.diff(enlarged[0, 4, :, 0].astype(int)).tolist() == [5] * 7


def test_borders_are_reflected_and_never_dark():
    """A bright picture stays bright whatever moves it."""
    bright = np.full((64, 16, 16, 3), 200, np.uint8)
    section = AugmentationSection(shift=0.5, rotate=180, zoom=0.9, shear=1)
    assert (changed(bright, section) == 200).all()


def test_draws_differ_between_the_pictures_of_a_batch():
    """The same picture sixteen times becomes sixteen pictures."""
    same = np.repeat(noise(1, 16, 16, 3), 16, axis=0)
    for policy, strength in POLICIES.items():
        found = changed(same, only(**{policy: strength}))
        assert len({picture.tobytes() for picture in found}) >= 10, policy


@pytest.mark.parametrize(
    "name", ["auto-contrast", "equalise", "solarise", "posterise", "contrast", "brightness", "colour", "sharpness"]
)
def test_operations_of_randaugment_are_pillows(name):
    """Within one level, which is rounding: Pillow cuts fractions off."""
    image, ops, enhance = (pytest.importorskip(f"PIL.{module}") for module in ("Image", "ImageOps", "ImageEnhance"))
    pictures = (noise(4, 24, 24, 3) // 2 + np.arange(24, dtype=np.uint8)[:, None] * 4).astype(np.uint8)
    level, signs = 0.6, np.array([[1, -1, 1, -1]], np.float32)
    factors = 1 + signs[0] * randaugment.MOST_CHANGE * level
    pillow = {
        "auto-contrast": lambda p, f: ops.autocontrast(p), "equalise": lambda p, f: ops.equalize(p),
        "solarise": lambda p, f: ops.solarize(p, 103), "posterise": lambda p, f: ops.posterize(p, 6),
        "contrast": lambda p, f: enhance.Contrast(p).enhance(f), "brightness": lambda p, f: enhance.Brightness(p).enhance(f),
        "colour": lambda p, f: enhance.Color(p).enhance(f), "sharpness": lambda p, f: enhance.Sharpness(p).enhance(f),
    }  # fmt: skip
    wanted = [np.asarray(pillow[name](image.fromarray(p), float(f))) for p, f in zip(pictures, factors, strict=True)]
    chosen = np.full((1, 4), randaugment.OPERATIONS.index(name), np.int32)
    found = randaugment.recoloured(tensorflow().constant(pictures), randaugment.Operations(chosen, signs, level)).numpy()
    assert np.abs(found.astype(int) - np.stack(wanted)).max() <= 1
    assert np.abs(found.astype(int) - pictures).max() > 1


def test_randaugment_draws_every_operation_about_as_often_and_treats_each_picture_by_its_own():
    """Fourteen operations over 2,800 pictures; a picture that drew none stays as it is, in its place."""
    operations = randaugment.draw(SEED, 2800, only(randaugment=1))
    counts = np.bincount(operations.chosen.numpy()[0], minlength=14)
    assert counts.min() > 140
    assert counts.max() < 260
    pictures = noise(2800, 4, 4, 3)
    found = randaugment.recoloured(tensorflow().constant(pictures), operations).numpy()
    nothing = operations.chosen.numpy()[0] == 0
    assert np.array_equal(found[nothing], pictures[nothing])


def test_jitter_by_one_changes_nothing_and_by_nought_takes_all():
    """No saturation is grey, no brightness black."""
    pictures, one = noise(3, 6, 6, 3), np.ones(3, np.float32)
    assert np.array_equal(colour_ops.jitter(pictures, one, one, one).numpy(), pictures)
    grey = colour_ops.jitter(pictures, one, one, 0 * one).numpy()
    assert (grey == grey[..., :1]).all()
    assert (colour_ops.jitter(pictures, 0 * one, one, one).numpy() == 0).all()


def mixed(count=64, **alphas):
    """Pictures of one value each, from 0 to 1, and a class each; mixed."""
    tf = tensorflow()
    values = tf.range(count, dtype=tf.float32) / count
    pictures = tf.broadcast_to(values[:, None, None, None], [count, 10, 10, 3])
    found, targets = mix(pictures, tf.eye(count), SEED, only(**alphas))
    return values.numpy(), found.numpy(), targets.numpy()


@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_targets_say_what_share_of_each_picture_is_there(alphas):
    """The mean pixel is the mean of the classes' pixels by target; targets add up to one, over two neighbours."""
    values, found, targets = mixed(**alphas)
    assert np.allclose(targets.sum(axis=1), 1)
    assert ((targets > 0).sum(axis=1) <= 2).all()
    assert np.allclose(found.mean(axis=(1, 2, 3)), targets @ values, atol=1e-5)
    assert np.std(targets.max(axis=1)) > 0.05  # each picture draws its own share


def test_mixup_blends_and_cutmix_pastes():
    """Of mixup every pixel is the same blend, of CutMix each pixel is one or the other, as a rectangle; both draw one of both."""

    def kinds(**alphas):
        return [len(np.unique(picture)) for picture in mixed(**alphas)[1]]

    assert set(kinds(mixup=1.0)) == {1}
    pasted = kinds(cutmix=1.0)
    assert set(pasted) <= {1, 2}
    assert np.mean(np.array(pasted) == 2) > 0.5
    assert 0.1 < np.mean(np.array(kinds(mixup=1.0, cutmix=1.0)) == 2) < 0.7


def test_shares_of_mixup_are_of_the_beta_distribution():
    """Alpha 1 is uniform; a large alpha stays near a half, a small one near the ends."""
    shares = {alpha: np.diag(mixed(2000, mixup=alpha)[2]) for alpha in (0.001, 1.0, 50.0)}
    assert shares[1.0].mean() == pytest.approx(0.5, abs=0.03)
    assert shares[1.0].var() == pytest.approx(1 / 12, abs=0.01)
    assert shares[50.0].std() < 0.06
    assert np.isfinite(shares[0.001]).all()
    assert np.mean(np.minimum(shares[0.001], 1 - shares[0.001])) < 0.01


def test_without_mixing_pictures_and_targets_pass_through():
    """The very same tensors."""
    pictures, targets = normalise(tensorflow().constant(noise(4, 8, 8, 3))), tensorflow().eye(4)
    found = mix(pictures, targets, SEED, AugmentationSection())
    assert found[0] is pictures
    assert found[1] is targets
