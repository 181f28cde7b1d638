import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from spikformer_edu import SpikformerError
from spikformer_edu.data import PAPER, Augment, augment, mixup_cutmix, randaugment

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth pictures: on white noise every interpolation differs."""
    noise = torch.rand(count, 3, size // 4, size // 4, generator=generator(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
    return (255 * smooth.clamp(0, 1)).byte()


def test_without_augmentation_images_are_only_normalised():
    x = images(4)
    out = augment.augment_images(x, PAPER["cifar10"], MEAN, STD, None)
    expected = tv.normalize(x.float() / 255, MEAN, STD)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(augment.augment_images(x, None, MEAN, STD, generator()), expected)


def test_the_same_generator_gives_the_same_batch_and_another_another():
    x = images(32)
    for settings in (PAPER["cifar10"], PAPER["imagenet"]):
        a, b, c = (augment.augment_images(x, settings, MEAN, STD, generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(x, images(32))  # the source is left alone


def test_grey_is_that_of_torchvision(default_dtype):
    x = torch.randint(256, (1, 3, 300, 300), generator=generator()).byte()
    x[0, :, :256, 0] = torch.arange(256)  # grey pixels, where rounding decides
    expected = tv2.rgb_to_grayscale(x, 3)
    assert torch.equal(randaugment._grey(x), expected)
    default_dtype(torch.float64)
    assert torch.equal(randaugment._grey(x), expected)


def test_flip_and_crop_do_what_torchvision_does():
    x = images(64)
    flipped = augment.random_flip(x, 0.5, generator())
    mirrored = [torch.equal(a, tv.hflip(b)) for a, b in zip(flipped, x, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True)) and 20 < sum(mirrored) < 44
    cropped = augment.random_crop(x, 4, generator())
    for picture, source in zip(cropped[:8], x, strict=False):
        windows = [tv.crop(tv.pad(source, 4), i, j, 32, 32) for i in range(9) for j in range(9)]
        assert any(torch.equal(picture, window) for window in windows)


@pytest.mark.parametrize("name", randaugment.OPERATIONS["all"])
def test_each_operation_of_randaugment_agrees_with_pillow_and_torchvision(name):
    x, level = images(4, 64), 0.7
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    fill = torch.tensor([127.0, 102.0, 76.0]).view(-1, 1, 1)
    out = randaugment._OPERATION[name](x, torch.full((4,), level), sign, fill)
    assert out.dtype == torch.uint8 and out.shape == x.shape
    for i, s in enumerate(sign.tolist()):
        factor, v = 1 + s * 0.9 * level, s * level

        def moved(p, *matrix):  # the official code calls Pillow
            picture = Image.fromarray(p.permute(1, 2, 0).numpy())
            picture = picture.transform(
                (64, 64), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(127, 102, 76)
            )
            return tv2.pil_to_tensor(picture)

        def rotated(p, degrees):
            picture = Image.fromarray(p.permute(1, 2, 0).numpy())
            return tv2.pil_to_tensor(picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(127, 102, 76)))

        expected = {
            "equalize": lambda p: tv2.equalize(p),
            "auto_contrast": lambda p: tv2.autocontrast(p),
            "invert": lambda p: tv2.invert(p),
            "posterize": lambda p: tv2.posterize(p, 4 - int(level * 4)),
            "solarize": lambda p: tv2.solarize(p, 256 - int(256 * level)),
            "solarize_add": lambda p: torch.where(p < 128, (p.int() + int(110 * level)).clamp_max(255).byte(), p),
            "color": lambda p, f=factor: tv2.adjust_saturation(p, f),
            "contrast": lambda p, f=factor: tv2.adjust_contrast(p, f),
            "brightness": lambda p, f=factor: tv2.adjust_brightness(p, f),
            "sharpness": lambda p, f=factor: tv2.adjust_sharpness(p, f),
            "rotate": lambda p, v=v: rotated(p, 30 * v),
            "shift_x": lambda p, v=v: moved(p, 1, 0, 0.45 * v * 64, 0, 1, 0),
            "shift_y": lambda p, v=v: moved(p, 1, 0, 0, 0, 1, 0.45 * v * 64),
            "shear_x": lambda p, v=v: moved(p, 1, 0.3 * v, 0, 0, 1, 0),
            "shear_y": lambda p, v=v: moved(p, 1, 0, 0, 0.3 * v, 1, 0),
        }[name](x[i])
        difference = (out[i].int() - expected.int()).abs()
        if name.split("_")[0] in ("rotate", "shift", "shear"):  # bicubic kernels differ, most of all along the rim
            assert (difference > 8).float().mean() < 0.05, f"{name}, sign {s}"
        else:
            assert difference.max() <= 1, f"{name}, sign {s}"


def test_randaugment_changes_half_of_the_images_by_one_operation_each():
    x = images(400)
    changed = (randaugment.rand_augment(x, "few", 1, 9.0, 0.4, MEAN, generator()) != x).flatten(1).any(1).float().mean()
    assert 0.4 < changed < 0.6


def test_erasing_sets_one_rectangle_to_the_mean():
    x = torch.ones(200, 2, 40, 30)
    out = augment.erase(x.clone(), torch.arange(200) % 2 == 0, (0.02, 1 / 3), (0.3, 1 / 0.3), generator())
    assert (out[1::2] == 1).all()
    for picture in out[::2]:
        hole = picture == 0
        assert torch.equal(hole[0], hole[1])
        rows, columns = hole[0].any(1).sum(), hole[0].any(0).sum()
        assert hole[0].sum() == rows * columns  # a rectangle
        assert 0.01 < rows * columns / 1200 < 0.36 and 0.2 < rows / columns < 5


def test_mixup_is_one_share_of_the_batch_and_its_reverse():
    x, y = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    mixed, soft = mixup_cutmix(x, y, 5, 0.5, 0.0, generator(3))
    share = float(soft[1, 1])
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.flip(0))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    assert soft[1].tolist() == pytest.approx([0, share, 0, 0, 1 - share])
    assert float(soft[0, 0]) == pytest.approx(1.0)  # mixed with its own class


def test_cutmix_gives_labels_the_share_of_the_area():
    x = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(5, 4, 2, 20, 24)  # frames [T, B, C, H, W]; each sample its number
    for seed in range(20):
        mixed, soft = mixup_cutmix(x, torch.arange(4), 4, 0.0, 1.0, generator(seed))
        own = (mixed[2, 0, 0] == 0).float().mean()
        assert float(soft[0, 0]) == pytest.approx(float(own), abs=1e-6)
        assert torch.equal(mixed[0], mixed[4])  # the same box at every time step
        assert set(mixed[:, 0].unique().tolist()) <= {0.0, 3.0}


def test_mixing_can_be_off_or_partly_on():
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    same, soft = mixup_cutmix(x, y, 4, 0.0, 0.0, generator())
    assert same is x and torch.equal(soft, torch.eye(4))
    mixed = [not torch.equal(mixup_cutmix(x, y, 4, 0.5, 0.0, generator(s), probability=0.5)[0], x) for s in range(60)]
    assert 15 < sum(mixed) < 45
    kinds = set()
    for seed in range(30):  # with both on, one of the two
        out, _ = mixup_cutmix(x, y, 4, 1.0, 1.0, generator(seed))
        kinds.add("cut" if ((out == x) | (out == x.flip(0))).all() else "mixed")
    assert kinds == {"cut", "mixed"}


def test_frames_are_moved_alike_at_all_times_and_by_at_most_one_operation():
    frame = torch.zeros(2, 64, 64)
    frame[0, 20:40, 24:44], frame[1, 30:50, 10:30] = 3, 5
    x = frame.expand(4, 120, 2, 64, 64)
    out = augment.augment_frames(x, Augment(neuromorphic=True), generator())
    assert out.shape == x.shape
    for t in range(1, 4):
        assert torch.equal(out[t], out[0])
    assert set(out.unique().tolist()) == {0.0, 3.0, 5.0}  # nearest: counts stay counts
    same = (out[0] == x[0]).flatten(1).all(1).float().mean()
    assert 0.08 < same < 0.3  # one in six is left alone, and so is a shift by 0
    assert torch.equal(augment.augment_frames(x, Augment(neuromorphic=True), None), x)
    flipped = augment.augment_frames(x, Augment(flip=1.0), generator())
    assert torch.equal(flipped, x.flip(-1))


@pytest.mark.parametrize("kind, level", [(1, 5), (2, 3), (3, 28), (4, 8)])
def test_event_operations_agree_with_torchvision(monkeypatch, kind, level):
    """The official code calls torchvision's affine and rotate on each sample."""
    x = torch.zeros(1, 1, 2, 64, 64)
    x[0, 0, 0, 12:30, 20:50], x[0, 0, 1, 35:50, 8:30] = 2, 7
    draws = iter([torch.tensor([kind]), torch.tensor([level])])
    monkeypatch.setattr(augment.torch, "randint", lambda *args, **kwargs: next(draws))
    out = augment.augment_frames(x, Augment(neuromorphic=True), generator())[0, 0]
    v = float(torch.linspace(-1, 1, 31)[level])
    expected = {
        1: lambda: tv.affine(x[0, 0], 0, [0, 0], 1, [np.degrees(0.3 * v), 0]),
        2: lambda: tv.affine(x[0, 0], 0, [int(5 * v), 0], 1, [0, 0]),
        3: lambda: tv.affine(x[0, 0], 0, [0, int(5 * v)], 1, [0, 0]),
        4: lambda: tv.rotate(x[0, 0], 30 * v),
    }[kind]()
    assert (out != expected).float().mean() < 0.002  # a tie at a pixel's edge may fall to either side


def test_everything_runs_where_the_batch_lives():
    """On the meta device every operation that mixes devices fails, as it would on a GPU."""
    x = images(64).to("meta")
    for name in ("cifar10", "imagenet"):
        settings = PAPER[name].__class__(**{**vars(PAPER[name]), "crop_padding": 4})
        assert augment.augment_images(x, settings, MEAN, STD, generator()).device.type == "meta"
    frames = torch.zeros(3, 64, 2, 32, 32, device="meta")
    assert augment.augment_frames(frames, PAPER["cifar10dvs"], generator()).device.type == "meta"
    for alphas in ((0.5, 0.0), (0.0, 1.0)):
        mixed, soft = mixup_cutmix(frames, torch.zeros(64, dtype=torch.int64, device="meta"), 10, *alphas, generator())
        assert mixed.device.type == soft.device.type == "meta"


def test_settings_out_of_range_are_refused():
    for bad in (
        {"flip": 1.5}, {"erasing": -0.1}, {"mixup": -1}, {"magnitude": 11}, {"crop_area": (0.0, 1.0)},
        {"mixup": float("nan")}, {"cutmix": float("inf")}, {"magnitude_std": float("nan")}, {"mix_epochs": -1},
    ):  # fmt: skip
        with pytest.raises(SpikformerError, match=next(iter(bad))):
            Augment(**bad)
    with pytest.raises(SpikformerError, match="did you mean 'few'"):
        Augment(operations="fev")


def test_gestures_are_never_mirrored():
    """A mirror would turn a left hand into a right one."""
    assert PAPER["dvsgesture"] == Augment(neuromorphic=True, mixup=0.5, mix_probability=0.5, mix_epochs=75)
    assert PAPER["cifar10dvs"].flip == 0.5
