import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from making import write_picture
from PIL import Image

from spikformer_edu import SpikformerError
from spikformer_edu.data import PAPER, Augment, batches, count, info, load
from spikformer_edu.data.cifar10 import INFO as CIFAR10
from spikformer_edu.data.files import sweep, unpack
from spikformer_edu.data.images import crop_box, decode

pytestmark = pytest.mark.filterwarnings("ignore:.*holds .* images of")


# CIFAR -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_cifar10_is_complete_and_its_constants_are_its_own(real_data):
    splits = load("cifar10", real_data)
    assert len(splits.train) == 50_000 and len(splits.test) == 10_000
    assert splits.train.targets.bincount().tolist() == [5000] * 10
    assert splits.test.targets.bincount().tolist() == [1000] * 10
    pixels = splits.train.pixels.transpose(0, 1).flatten(1)
    for channel in range(3):
        levels = torch.arange(256, dtype=torch.float64) / 255
        share = pixels[channel].bincount(minlength=256).double() / pixels.shape[1]
        mean = float((share * levels).sum())
        std = float((share * (levels - mean) ** 2).sum().sqrt())
        assert round(mean, 4) == CIFAR10.mean[channel] and round(std, 4) == CIFAR10.std[channel]


def test_class_folders_are_read_in_order_of_class_and_name(pictures):
    with pytest.warns(UserWarning, match="train holds 40 of 50,000 images of CIFAR-10"):
        splits = load("cifar10", pictures)
    assert len(splits.train) == 40 and len(splits.test) == 20 and splits.val is None
    assert splits.train.targets.tolist() == [label for label in range(10) for _ in range(4)]
    file = pictures / "cifar10" / "train" / "bird" / "2.bmp"
    assert np.array_equal(splits.train.pixels[10].permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    x, y = splits.train.fetch(torch.tensor([10]), None)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR10.mean, CIFAR10.std))
    torch.testing.assert_close(x[0], (splits.train.pixels[10] / 255 - mean) / std)
    assert y.tolist() == [2]


def test_images_are_decoded_once_and_again_when_a_file_changes(pictures, monkeypatch):
    first = load("cifar10", pictures).train.pixels
    from spikformer_edu.data import cifar10

    decoded = []
    real = cifar10.decode
    monkeypatch.setattr(cifar10, "decode", lambda content, name: decoded.append(name) or real(content, name))
    assert torch.equal(load("cifar10", pictures).train.pixels, first) and not decoded
    write_picture(pictures / "cifar10" / "train" / "cat" / "0.png", 999)
    changed = load("cifar10", pictures).train.pixels
    assert len(decoded) == 40 and (changed != first).flatten(1).any(1).nonzero().flatten().tolist() == [12]


def test_a_picture_replaced_by_another_of_the_same_size_and_time_is_seen(pictures):
    first = load("cifar10", pictures).train.pixels
    file = pictures / "cifar10" / "train" / "bird" / "2.bmp"
    before = file.stat()
    write_picture(file, 999)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == before.st_mtime_ns
    changed = load("cifar10", pictures).train.pixels
    assert (changed != first).flatten(1).any(1).nonzero().flatten().tolist() == [10]


def test_files_that_are_no_samples_are_counted_in_one_warning(pictures):
    train = pictures / "cifar10" / "train"
    for name in ("cat/notes.txt", "cat/a.mov", "dog/b.MOV", "dog/.hidden.png", "dog/._0.png", "dog/.DS_Store"):
        (train / name).write_text("")
    (train / "astray.png").write_text("")
    (train / "wombat").mkdir(), (train / "wombat" / "a.png").write_text("")
    with pytest.warns(UserWarning, match="left out in .*train: ") as caught:
        assert len(load("cifar10", pictures).train) == 40
    (said,) = (str(w.message) for w in caught if "left out" in str(w.message))
    for part in ("2 .mov", "1 .txt", "1 hidden", "1 outside the class folders", "1 in 'wombat', which is not one of"):
        assert part in said


def test_validation_and_toy_sets_are_cut_from_training(pictures):
    splits = load("cifar10", pictures, val_fraction=0.25, samples_per_class=2, augment=PAPER["cifar10"])
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [20, 10, 20]
    assert splits.train.targets.bincount().tolist() == [2] * 10 and splits.val.targets.bincount().tolist() == [1] * 10
    train = {p.numpy().tobytes() for p in splits.train.pixels}
    assert not train & {p.numpy().tobytes() for p in splits.val.pixels}
    assert splits.train.augment is not None and splits.val.augment is None and splits.test.augment is None


def test_splits_move_to_a_device_as_a_whole(pictures):
    splits = load("cifar10", pictures, val_fraction=0.25, augment=PAPER["cifar10"])
    there = splits.to("cpu")
    for name in ("train", "val", "test"):
        a, b = (list(batches(s[name], 10, train=name == "train")) for s in (splits, there))
        assert all(torch.equal(x, z) for (x, _), (z, _) in zip(a, b, strict=True))
    assert splits.to("meta").train.pixels.device.type == "meta"


def test_torchvisions_pickled_batches_are_read(tmp_path, monkeypatch):
    """The published bytes are not here, so their checksums are replaced by those of batches made on the spot."""
    import hashlib

    import torchvision

    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sums = {}
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {"data": random.integers(0, 256, (30, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(30)]}
        content = {"label_names": list(CIFAR10.classes)} if name == "batches.meta" else content
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    published = torchvision.datasets.CIFAR10
    monkeypatch.setattr(published, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(published, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(published, "meta", {**published.meta, "md5": sums["batches.meta"]})
    splits = load("cifar10", tmp_path)
    data = pickle.loads((folder / "data_batch_1").read_bytes())["data"]
    assert np.array_equal(splits.train.pixels.flatten(1).numpy(), data)
    assert splits.test.targets.tolist() == [i % 10 for i in range(30)]
    assert count("cifar10", tmp_path) == {"train": 50_000, "test": 10_000}
    for name in ("train", "test"):
        for i, pixels in enumerate(splits[name].pixels.permute(0, 2, 3, 1).numpy()):
            file = tmp_path / "folders" / "cifar10" / name / CIFAR10.classes[i % 10] / f"{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    same = load("cifar10", tmp_path / "folders").test.fingerprint(CIFAR10.classes)  # class by class: another order
    own = splits.test.fingerprint(CIFAR10.classes)
    assert same["content"] == own["content"] and same["order"] != own["order"]
    content = bytearray((folder / "data_batch_1").read_bytes())
    content[5000] ^= 1
    (folder / "data_batch_1").write_bytes(content)
    with pytest.raises(SpikformerError, match="cifar-10-batches-py is incomplete or damaged"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name, folder", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_an_empty_folder_of_batches_is_not_counted_as_the_data_set(tmp_path, name, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(SpikformerError, match=f"{folder} is incomplete or damaged"):
        count(name, tmp_path)


def test_cifar100_has_its_own_classes(tmp_path):
    names = info("cifar100").classes
    assert len(names) == 100 and sorted(names) == list(names)
    for split in ("train", "test"):
        for label, name in enumerate(names):
            write_picture(tmp_path / "cifar100" / split / name / "a.png", label)
    splits = load("cifar100", tmp_path)
    assert splits.info.name == "cifar100" and splits.train.targets.tolist() == list(range(100))
    (tmp_path / "cifar100" / "test" / "worm" / "a.png").unlink()
    with pytest.raises(SpikformerError, match="class 'worm' is empty"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_an_image_that_is_none_is_named(pictures, content):
    file = pictures / "cifar10" / "train" / "ship" / "0.png"
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(SpikformerError, match="no readable image") as caught:
        load("cifar10", pictures)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_link_to_an_image_that_is_gone_is_named(pictures):
    file = pictures / "cifar10" / "train" / "ship" / "0.png"
    file.unlink()
    file.symlink_to("gone.png")
    with pytest.raises(SpikformerError, match="ship/0.png: No such file"):
        load("cifar10", pictures)


def encoded(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def test_sixteen_bits_of_grey_become_eight():
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    if Image.open(encoded(Image.fromarray(grey), "PNG")).mode == "I":
        pytest.skip("this Pillow does not tell 16 bits from 32")
    out = np.asarray(decode(encoded(Image.fromarray(grey), "PNG"), "a.png"))
    assert out.shape == (32, 32, 3) and (out == (grey // 256)[..., None]).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_of_grey_are_refused(kind):
    with pytest.raises(SpikformerError, match="a.tif is no readable image .*save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(np.ones((4, 4), kind)), "TIFF"), "a.tif")


def test_what_is_transparent_shows_white_paper_and_what_is_not_stays_as_it_is():
    ink = np.zeros((2, 2, 4), dtype=np.uint8)
    ink[0, :, 3] = 255, 0
    image = Image.fromarray(ink)
    expected = [[0, 255], [255, 255]]
    for picture in (image, image.convert("LA"), image.convert("PA").convert("RGBA")):
        assert np.asarray(decode(encoded(picture, "PNG"), "a"))[..., 0].tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert np.asarray(decode(encoded(palette, "PNG", transparency=0), "a")).tolist() == [[[255] * 3, [40, 50, 60]]]
    opaque = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    opaque[..., 3] = 255
    for kind in ("PNG", "WEBP"):
        file = encoded(Image.fromarray(opaque), kind, **({"lossless": True} if kind == "WEBP" else {}))
        assert np.array_equal(np.asarray(decode(file, "a")), opaque[..., :3])


def test_an_image_of_another_size_points_to_folder(pictures):
    file = pictures / "cifar10" / "train" / "ship" / "0.png"
    write_picture(file, 0, size=(40, 30))
    with pytest.raises(SpikformerError, match=r"0.png is 40 x 30 pixels, CIFAR-10 is 32 x 32: .*--dataset folder"):
        load("cifar10", pictures)


# ImageNet ----------------------------------------------------------------------------------------------------------


WNIDS = [f"n{i:08d}" for i in range(1, 1001)]


@pytest.fixture
def imagenet(tmp_path):
    """A thousand classes, one validation image each and two training images, most of them links to a few files."""
    sources = []
    for i in range(5):
        path = tmp_path / f"{i}.jpg"
        write_picture(path, i, size=(60 + 10 * i, 50))
        sources.append(path)
    for label, wnid in enumerate(WNIDS):
        for split, images in (("train", 2), ("val", 1)):
            folder = tmp_path / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(images):
                os.link(sources[(label + i) % 5], folder / f"{wnid}_{i}.JPEG")
    return tmp_path


def test_the_real_sample_gets_the_official_class_indices(real_data):
    if not (real_data / "imagenet" / "val").is_dir():
        pytest.skip("no ImageNet sample here")
    splits = load("imagenet", real_data)
    assert len(splits.test) == 1000 and splits.test.targets.tolist() == list(range(1000))
    named = {splits.info.classes[i]: os.fsdecode(splits.test.names[i]).split("/")[0] for i in (0, 1, 207, 281, 999)}
    assert named == {
        "tench": "n01440764", "goldfish": "n01443537", "golden retriever": "n02099601", "tabby": "n02123045",
        "toilet tissue": "n15075141",
    }  # fmt: skip
    x, y = splits.test.fetch(torch.tensor([207, 0]), None)
    assert x.shape == (2, 3, 224, 224) and y.tolist() == [207, 0]
    from torchvision import transforms

    picture = Image.open(splits.test.folder / os.fsdecode(splits.test.names[207])).convert("RGB")
    steps = [transforms.Resize(224, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    steps += [transforms.ToTensor(), transforms.Normalize(splits.info.mean, splits.info.std)]
    assert (x[0] - transforms.Compose(steps)(picture)).abs().mean() < 0.08  # cut and resized in another order
    with pytest.raises(SpikformerError, match="no train images in"):
        len(splits.train)


def test_imagenet_trains_on_train_and_tests_on_val(imagenet):
    splits = load("imagenet", imagenet, image_size=32, augment=PAPER["imagenet"], val_fraction=0.5)
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [1000, 1000, 1000]
    assert not set(splits.train.names.tolist()) & set(splits.val.names.tolist())
    assert splits.info.image_size == 32 and len(splits.info.classes) == 1000
    with pytest.warns(UserWarning, match="holds 2,000 of 1,281,167 train images of ImageNet-1k"):
        load("imagenet", imagenet)
    runs = [list(batches(splits.train, 500, train=True, workers=w)) for w in (0, 2)]
    for (x, y), (a, b) in zip(*runs, strict=True):
        assert x.shape == (500, 3, 32, 32) and torch.equal(x, a) and torch.equal(y, b)


def test_a_part_of_imagenet_is_not_taken_for_all_of_it(imagenet):
    (imagenet / "imagenet" / "val" / WNIDS[3] / f"{WNIDS[3]}_0.JPEG").unlink()
    with pytest.raises(SpikformerError, match="class 'n00000004' is empty"):
        load("imagenet", imagenet)
    (imagenet / "imagenet" / "val" / WNIDS[3]).rmdir()
    with pytest.raises(SpikformerError, match="val has 999 class folders, ImageNet-1k has 1,000: .*--dataset folder"):
        load("imagenet", imagenet)


def test_classes_that_differ_between_train_and_val_are_refused(imagenet):
    (imagenet / "imagenet" / "val" / WNIDS[3]).rename(imagenet / "imagenet" / "val" / "n99999999")
    with pytest.raises(SpikformerError, match="class n00000004 is in one of train and val"):
        load("imagenet", imagenet)


ORDER = np.random.default_rng(0).permutation(1000)  # label of the published validation image i: ORDER[(i - 1) % 1000]


def coloured(label: int) -> bytes:
    """An image file whose mean colour tells its label."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (label % 256, label // 4, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def assert_colours_tell_labels(split) -> None:
    indices = torch.tensor([999, 5, 430])
    x, y = split.fetch(indices, None)
    assert torch.equal(y, split.targets[indices])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (split.info.mean, split.info.std))
    for picture, label in zip(x, y.tolist(), strict=True):
        color = ((picture * std + mean) * 255).mean((1, 2)).round().tolist()
        assert color == [label % 256, label // 4, 77]


def write_tar(path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def validation_images() -> dict[str, bytes]:
    """The first thousand, as they come in the published archive: without class folders."""
    return {f"ILSVRC2012_val_{i:08d}.JPEG": coloured(ORDER[i - 1]) for i in range(1, 1001)}


def write_devkit(folder) -> None:
    """The two files that matter of ILSVRC2012_devkit_t12: its own numbers are in no order of the wnids."""
    from scipy.io import savemat

    numbers = np.random.default_rng(1).permutation(1000) + 1  # of each label
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.empty((1003, 1), dtype=[(name, object) for name in [*fields, "num_train_images"]])
    leaves = [
        (float(numbers[label]), WNIDS[label], "a, b", "c", 0.0, np.empty((0, 0)), 0.0, 1300.0) for label in range(1000)
    ]
    inner = [(float(i), f"n1{i:07d}", "d", "e", 2.0, np.array([[1.0, 2.0]]), 3.0, 0.0) for i in (1001, 1002, 1003)]
    synsets[:, 0] = sorted(leaves + inner, key=lambda synset: synset[0])
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{numbers[ORDER[i % 1000]]}\n" for i in range(50_000))
    (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def test_validation_images_without_class_folders_get_their_classes_from_a_file_beside_them(tmp_path):
    place = tmp_path / "imagenet"
    (place / "val").mkdir(parents=True)
    for name, content in validation_images().items():
        (place / "val" / name).write_bytes(content)

    def refused(says: str) -> None:
        with pytest.raises(SpikformerError, match=says):
            load("imagenet", tmp_path)

    def understood() -> None:
        test = load("imagenet", tmp_path, image_size=16).test
        assert test.targets.tolist() == ORDER.tolist()
        assert_colours_tell_labels(test)

    refused("nothing says which class .*val_00000001.JPEG has: put ILSVRC2012_devkit_t12.tar.gz .* into .*imagenet")
    with pytest.raises(SpikformerError, match="nothing says which class"):
        count("imagenet", tmp_path)
    before = sorted(path.name for path in (place / "val").iterdir())
    write_devkit(place / "ILSVRC2012_devkit_t12")
    assert count("imagenet", tmp_path) == {"train": 0, "val": 1000}
    understood()
    with tarfile.open(place / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(place / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    (place / "ILSVRC2012_devkit_t12").rename(tmp_path / "elsewhere")
    understood()
    archive = (place / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()
    (place / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(archive[:1000])
    refused("devkit_t12.tar.gz is no list of validation labels .*: fetch it again")
    (place / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    labels = [int(ORDER[i % 1000]) for i in range(50_000)]
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 50_001)]
    shuffled = np.random.default_rng(2).permutation(50_000)
    files = {
        "LOC_val_solution.csv": "ImageId,PredictionString\n"
        + "".join(f"{names[i]},{WNIDS[labels[i]]} 85 1 499 272 {WNIDS[labels[i]]} 1 2 3 4\n" for i in shuffled),
        "imagenet_2012_validation_synset_labels.txt": "".join(f"{WNIDS[label]}\n" for label in labels),
        "val.txt": "".join(f"{names[i]}.JPEG {WNIDS[labels[i]]}\n" for i in shuffled),
    }
    for name, text in files.items():
        (place / name).write_text(text)
        understood()
        (place / name).unlink()
    numbered = [f"{names[i]}.JPEG {labels[i]}\n" for i in shuffled]
    (place / "val.txt").write_text("".join(numbered))
    understood()
    (place / "val.txt").write_text("".join(numbered[1:]))
    refused("val.txt names 49,999 validation images, not 50,000")
    (place / "val.txt").write_text("".join(f"{name} {label + 1}\n" for name, label in zip(names, labels, strict=True)))
    refused("val.txt is no list of validation labels .the labels are not 0 to 999.")
    assert sorted(path.name for path in (place / "val").iterdir()) == before  # read in their place, none moved


def test_the_published_archives_are_read_as_they_are(tmp_path):
    place = tmp_path / "imagenet"
    of_class = {wnid: {f"{wnid}_{i}.JPEG": coloured(label) for i in range(2)} for label, wnid in enumerate(WNIDS)}
    for wnid, files in of_class.items():
        write_tar(place / "train" / f"{wnid}.tar", files)  # half unpacked
    write_tar(place / "ILSVRC2012_img_val.tar", validation_images())
    with pytest.raises(SpikformerError, match="nothing says which class .*img_val.tar: ILSVRC2012_val_00000001.JPEG"):
        count("imagenet", tmp_path)
    write_devkit(place / "ILSVRC2012_devkit_t12")
    assert count("imagenet", tmp_path) == {"train shards": 1000, "val shards": 1}
    whole = {f"{wnid}.tar": (place / "train" / f"{wnid}.tar").read_bytes() for wnid in WNIDS}
    for published in (False, True):
        if published:  # a thousand tar files in one; what was unpacked from it does not count twice
            write_tar(place / "ILSVRC2012_img_train.tar", whole)
            assert count("imagenet", tmp_path) == {"train shards": 1, "val shards": 1}
        splits = load("imagenet", tmp_path, image_size=16)
        assert splits.train.targets.tolist() == [label for label in range(1000) for _ in range(2)]
        assert splits.test.targets.tolist() == ORDER.tolist()
        assert_colours_tell_labels(splits.train), assert_colours_tell_labels(splits.test)
    (place / "ILSVRC2012_img_train.tar").unlink()
    (place / "train" / f"{WNIDS[7]}.tar").unlink()
    (place / "train" / WNIDS[7]).mkdir()
    with pytest.raises(SpikformerError, match="train .its tar files are read, not the class folders.* 999 classes"):
        load("imagenet", tmp_path)


def test_images_that_are_there_twice_or_are_links_in_a_tar_file_are_refused(tmp_path, monkeypatch):
    write_tar(tmp_path / "val.tar", {f"{wnid}/a.png": coloured(0) for wnid in WNIDS})
    monkeypatch.setitem(info("imagenet").samples, "val", 1000)
    assert len(load("imagenet", tmp_path).test) == 1000
    write_tar(tmp_path / "val-copy.tar", {f"{wnid}/a.png": coloured(0) for wnid in WNIDS})
    with pytest.raises(SpikformerError, match="2,000 val images .*, ImageNet-1k has 1,000: remove what is there twice"):
        load("imagenet", tmp_path)
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        member = tarfile.TarInfo("n00000001/a.png")
        member.type, member.linkname = tarfile.LNKTYPE, "n00000001/b.png"
        tar.addfile(member)
    with pytest.raises(SpikformerError, match="train.tar is no readable shard .n00000001/a.png is a link"):
        load("imagenet", tmp_path)


def write_shards(folder, split: str, style: str) -> dict[int, bytes]:
    """A thousand tiny images in four shards, with .cls files after (or before) each, or in class folders."""
    contents = {}
    tars = [tarfile.open(folder / f"{split}-{i:04d}.tar", "w") for i in range(4)]
    for label in range(1000):
        contents[label] = coloured(label)
        stem = f"{WNIDS[label]}/a" if style == "folders" else f"{label * 37 % 1000:06d}"
        files = [(f"{stem}.png", contents[label])]
        if style == "cls":
            files.insert(label % 2, (f"{stem}.cls", str(label).encode()))
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tars[label % 4].addfile(member, io.BytesIO(content))
    for tar in tars:
        tar.close()
    return contents


@pytest.mark.parametrize("style", ["cls", "folders"])
def test_shards_are_read_like_files_in_any_order(tmp_path, style):
    place = tmp_path / "imagenet"
    place.mkdir()
    write_shards(place, "train", style), write_shards(place, "val", style)
    splits = load("imagenet", tmp_path, image_size=16)
    assert splits.train.targets.bincount().tolist() == [1] * 1000 and len(splits.test) == 1000
    assert_colours_tell_labels(splits.train)
    seen = [y for rank in range(2) for _, y in batches(splits.train, 100, train=True, rank=rank, world=2, workers=2)]
    assert torch.cat(seen).bincount().tolist() == [1] * 1000  # two nodes, two workers each: every image once


def test_a_damaged_shard_is_named_and_a_changed_one_indexed_anew(tmp_path):
    place = tmp_path / "imagenet"
    place.mkdir()
    write_shards(place, "val", "cls")
    assert count("imagenet", tmp_path) == {"train": 0, "val shards": 4} and not (tmp_path / "spikformer-cache").exists()
    assert len(load("imagenet", tmp_path, image_size=16).test) == 1000
    shard = place / "val-0002.tar"
    good = shard.read_bytes()
    shard.write_bytes(good[:200] + b"garbage" + good[207:])
    with pytest.raises(SpikformerError, match="val-0002.tar is no readable shard"):
        load("imagenet", tmp_path, image_size=16)
    shard.write_bytes(good)
    split = load("imagenet", tmp_path, image_size=16).test
    shard.write_bytes(good[: len(good) // 2])  # cut while a run goes on
    with pytest.raises(SpikformerError, match=r"val-0002.tar \(bytes \d+ to \d+\) is no readable image"):
        list(batches(split, 100))
    shard.unlink()
    with pytest.raises(SpikformerError, match="cannot read .*val-0002.tar: No such file"):
        list(batches(split, 100))
    shard.symlink_to("gone.tar")
    with pytest.raises(SpikformerError, match="cannot read .*val-0002.tar: No such file"):
        load("imagenet", tmp_path, image_size=16)


def test_the_papers_crop_takes_the_whole_picture_within_its_bounds():
    generator = torch.Generator().manual_seed(0)
    assert crop_box(400, 350, (1.0, 1.0), generator) == (0, 0, 350, 400)
    assert crop_box(600, 300, (1.0, 1.0), generator) == (0, 100, 300, 400)  # 4 : 3 from the middle
    assert crop_box(300, 600, (1.0, 1.0), generator) == (100, 0, 400, 300)
    boxes = np.array([crop_box(400, 300, (0.08, 1.0), generator) for _ in range(500)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    share, ratio = height * width / 120_000, width / height
    assert share.min() < 0.12 and share.max() > 0.9 and (share > 0.07).all()
    assert (ratio > 0.72).all() and (ratio < 1.4).all()


# Folder ------------------------------------------------------------------------------------------------------------


def tree(folder, classes=("apple", "pear"), count=10) -> None:
    for label, name in enumerate(classes):
        for i in range(count):
            write_picture(folder / name / f"{i}.png", 100 * label + i, size=(20, 24))


def test_a_folder_of_train_and_test_or_val(tmp_path):
    tree(tmp_path / "a" / "train"), tree(tmp_path / "a" / "test", count=4)
    splits = load("folder", tmp_path / "a", image_size=16)
    assert splits.info.classes == ("apple", "pear") and splits.info.num_classes == 2
    assert len(splits.train) == 20 and splits.val is None and len(splits.test) == 8
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "val")
    assert len(load("folder", tmp_path / "a", image_size=16).test) == 8
    tree(tmp_path / "a" / "test", count=3)
    splits = load("folder", tmp_path / "a", image_size=16)
    assert len(splits.val) == 8 and len(splits.test) == 6
    x, y = splits.test.fetch(torch.tensor([0, 5]), None)
    assert x.shape == (2, 3, 16, 16) and y.tolist() == [0, 1]
    with pytest.raises(SpikformerError, match=r"val validates: leave out val_fraction=0.25"):
        load("folder", tmp_path / "a", val_fraction=0.25)  # no one would see what it takes from training


def test_one_tree_is_split_by_seed(tmp_path):
    tree(tmp_path)
    splits = load("folder", tmp_path, image_size=16, val_fraction=0.25, augment=Augment(crop_area=(0.5, 1.0), flip=0.5))
    assert [len(s) for s in (splits.train, splits.val, splits.test)] == [12, 4, 4]
    names = [set(s.names.tolist()) for s in (splits.train, splits.val, splits.test)]
    assert len(set.union(*names)) == 20
    assert set(load("folder", tmp_path, image_size=16).test.names.tolist()) == names[2]
    assert set(load("folder", tmp_path, image_size=16, split_seed=1).test.names.tolist()) != names[2]


def test_a_folder_has_the_classes_and_files_that_torchvision_finds_in_it(tmp_path):
    from torchvision.datasets import ImageFolder

    for suffix in (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".JPG", ".Png"):
        for place in (
            "train/_other",
            "train/b",
            "train/b/deep/er",
            "train/b/deep-er",
            "train/c",
            "test/_other",
            "test/b",
        ):
            write_picture(tmp_path / place / f"1{suffix}", 0)
    write_picture(tmp_path / "test" / "c" / "1.png", 0)
    (tmp_path / "train" / "c" / "linked").symlink_to(tmp_path / "train" / "b" / "deep")
    splits = load("folder", tmp_path, image_size=8)
    assert splits.info.classes == ("_other", "b", "c")
    for name, split in (("train", splits.train), ("test", splits.test)):
        theirs = ImageFolder(tmp_path / name)
        assert [str(split.folder / os.fsdecode(n)) for n in split.names] == [path for path, _ in theirs.samples]
        assert split.targets.tolist() == theirs.targets and splits.info.classes == tuple(theirs.classes)
    for x, _ in batches(splits.train, 32):
        assert x.isfinite().all()
    for suffix in (".gif", ".jfif"):
        write_picture(tmp_path / "train" / "c" / "1.png", 0)
        Image.new("RGB", (9, 9)).save(tmp_path / "train" / "c" / f"2{suffix}", "GIF" if suffix == ".gif" else "JPEG")
    assert len(load("folder", tmp_path).train) == len(splits.train) + 2


def test_a_link_that_leads_in_a_circle_is_named(tmp_path):
    tree(tmp_path)
    (tmp_path / "pear" / "loop").symlink_to(tmp_path)
    with pytest.raises(SpikformerError, match="pear/loop/pear is a link to a folder that holds it"):
        load("folder", tmp_path)


@pytest.mark.parametrize(
    "val, test", [("valid", "test"), ("validation", "Testing"), ("dev", "TEST"), ("Val", "testing")]
)
def test_parts_have_other_usual_names(tmp_path, val, test):
    tree(tmp_path / "Training"), tree(tmp_path / val, count=4), tree(tmp_path / test, count=3)
    splits = load("folder", tmp_path)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [20, 8, 6]
    assert count("folder", tmp_path) == {"train": 20, "val": 8, "test": 6}
    tree(tmp_path / "train")
    with pytest.raises(SpikformerError, match="has Training and train: keep one train folder"):
        load("folder", tmp_path)


def test_parts_that_are_not_used_are_named(tmp_path):
    (
        tree(tmp_path / "train"),
        tree(tmp_path / "test"),
        tree(tmp_path / "extra"),
        (tmp_path / "notes" / "a").mkdir(parents=True),
    )
    with pytest.warns(UserWarning, match="the images in .*extra are left out") as caught:
        load("folder", tmp_path)
    assert len(caught) == 1
    (tmp_path / "test").rename(tmp_path / "holdout")
    for read in (load, count):
        with pytest.raises(
            SpikformerError, match=r"none in test or val .besides it there is 'extra', 'holdout', 'notes'."
        ):
            read("folder", tmp_path)


def test_one_tree_is_counted_as_it_is_split(tmp_path):
    assert count("folder", tmp_path) == {}
    tree(tmp_path)
    assert count("folder", tmp_path) == {"train": 16, "test": 4}
    (tmp_path / "__MACOSX" / "apple").mkdir(parents=True)
    assert count("folder", tmp_path) == {"train": 16, "test": 4}


def test_folders_that_do_not_fit_are_explained(tmp_path):
    with pytest.raises(SpikformerError, match="no class folders in"):
        load("folder", tmp_path)
    tree(tmp_path / "train")
    with pytest.raises(SpikformerError, match="none in test or val"):
        load("folder", tmp_path)
    tree(tmp_path / "test", classes=("apple", "plum"))
    with pytest.raises(SpikformerError, match="class 'pear' is in one of"):
        load("folder", tmp_path)
    with pytest.raises(SpikformerError, match="no folder .*nowhere: give an existing one as --data-dir"):
        load("folder", tmp_path / "nowhere")
    with pytest.raises(SpikformerError, match="image_size=4"):
        load("folder", tmp_path, image_size=4)


def test_images_are_found_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    tree(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    split = load("folder", "mine", image_size=16).test
    monkeypatch.chdir("/")
    assert split.fetch(torch.tensor([0]), None)[0].shape == (1, 3, 16, 16)


# Archives ----------------------------------------------------------------------------------------------------------


def archive(path, names: list[str], link: str | None = None) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        if link:
            member = tarfile.TarInfo("inside/link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)


@pytest.mark.parametrize(
    "names, link", [(["a", "../escaped"], None), (["a", "/absolute/escaped"], None), (["a"], "../../x")]
)
def test_archives_that_would_leave_the_folder_are_refused(tmp_path, names, link):
    archive(tmp_path / "a.tar.gz", names, link)
    folder = tmp_path / "inner" / "there"
    if names[-1].startswith("/"):  # tarfile's data filter takes the leading slash off, which keeps it inside
        unpack(tmp_path / "a.tar.gz", folder)
        assert (folder / "absolute" / "escaped").exists() and not Path("/absolute").exists()
        return
    with pytest.raises(SpikformerError, match="a.tar.gz is refused"):
        unpack(tmp_path / "a.tar.gz", folder)
    assert list(folder.iterdir()) == [] and not (tmp_path / "inner" / "escaped").exists()


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped"])
def test_zip_archives_that_would_leave_the_folder_are_refused(tmp_path, name):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(name, "abc")
    with pytest.raises(SpikformerError, match="a.zip is refused"):
        unpack(tmp_path / "a.zip", tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_a_truncated_archive_leaves_nothing_and_nothing_is_overwritten(tmp_path):
    archive(tmp_path / "a.tar.gz", [*(f"folder/{i}" for i in range(200)), "notes.txt"])
    content = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(SpikformerError, match="cannot unpack .*b.tar.gz"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
    (tmp_path / "there" / "folder").mkdir()
    (tmp_path / "there" / "folder" / "mine").write_text("mine")
    (tmp_path / "there" / "notes.txt").write_text("mine, too")
    unpack(tmp_path / "a.tar.gz", tmp_path / "there")
    assert [p.name for p in (tmp_path / "there" / "folder").iterdir()] == ["mine"]
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine, too"


def _unpack_ten_times(archive, folder) -> None:
    for i in range(10):
        unpack(archive, folder / str(i))


def test_processes_that_unpack_at_once_do_not_disturb_each_other(tmp_path):
    import multiprocessing

    archive(tmp_path / "a.tar.gz", [f"folder/{i}" for i in range(100)])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_unpack_ten_times, args=(tmp_path / "a.tar.gz", tmp_path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    for i in range(10):
        assert [p.name for p in (tmp_path / str(i)).iterdir()] == ["folder"]
        assert len(list((tmp_path / str(i) / "folder").iterdir())) == 100


def test_only_old_leftovers_of_killed_processes_are_swept(tmp_path):
    mine = [".work.tmp", ".unpack-old", ".tmp-7-0123abcd-folder", "recordings"]
    for name in (".spikformer-unpack-abc", ".spikformer-download-abc", *mine):
        (tmp_path / name / "inner").mkdir(parents=True)
        os.utime(tmp_path / name, (0, 0))
    files = [".editor.tmp", ".tmp-notes", "mine.tmp", ".tmp-7-0123abcd-fresh.z"]
    for name in (".tmp-7-0123abcd-old.z", *files):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, None if "fresh" in name else (0, 0))
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*mine, *files}
