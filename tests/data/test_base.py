import pytest
import torch

from spikformer_edu import SpikformerError
from spikformer_edu.data import MODULES, PAPER, Augment, batches, info, load
from spikformer_edu.data.base import Absent, Split, choose


def test_the_registry_knows_every_data_set_of_the_paper():
    assert list(MODULES) == [
        "digits", "digits-dvs", "cifar10", "cifar100", "cifar10dvs", "dvsgesture", "imagenet", "folder"
    ]  # fmt: skip
    for name in MODULES:
        facts = info(name)
        assert facts.name == name and facts.licence and facts.citation and facts.obtain
        assert len(facts.mean) == len(facts.std) == (0 if facts.time_steps else facts.channels)
        assert facts.num_classes == len(facts.classes) or not facts.classes
    assert [info(n).num_classes for n in MODULES] == [10, 10, 10, 100, 10, 11, 1000, 0]
    assert info("digits-dvs").simulated


def test_default_models_fit_their_data_sets():
    from spikformer_edu.presets import PRESETS

    for name in MODULES:
        facts = info(name)
        model = PRESETS[facts.default_model]
        if name not in ("digits-dvs", "folder"):  # these borrow one that is meant for another data set
            assert model.dataset == name and model.config.num_classes == facts.num_classes
            assert model.config.in_channels == facts.channels and model.image_size == facts.image_size


def test_unknown_names_and_options_get_one_line_that_helps():
    with pytest.raises(SpikformerError, match="did you mean 'cifar10'"):
        load("cifar1O")
    with pytest.raises(SpikformerError, match="digits has no use for image_size=64"):
        load("digits", image_size=64)
    with pytest.raises(SpikformerError, match="digits has no use for val_fraction"):
        load("digits", val_fraction=0.1)
    with pytest.raises(SpikformerError, match="mixup and cutmix"):
        load("digits", augment=Augment(flip=0.5))
    assert len(load("digits", time_steps=4, image_size=32, val_fraction=0, augment=None, toy=None).train) == 1258


def test_toy_and_validation_are_balanced_disjoint_and_fixed():
    targets = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0))
    rest, val = choose(targets, 0.1, None, None)
    assert torch.equal(torch.cat([rest, val]).sort().values, torch.arange(1000))
    shares = targets[val].bincount() / targets.bincount()
    assert ((shares - 0.1).abs() < 0.01).all()
    some, some_val = choose(targets, 0.1, 3, None)
    assert targets[some].bincount().tolist() == targets[some_val].bincount().tolist() == [3] * 7
    assert set(some.tolist()) <= set(rest.tolist()) and set(some_val.tolist()) <= set(val.tolist())
    assert torch.equal(choose(targets, 0.1, 3, None)[0], some)
    assert not torch.equal(choose(targets, 0.1, 3, 1)[0], some)
    assert len(choose(targets, None, None, None)[1]) == 0
    for bad in ({"val_fraction": 1.0}, {"val_fraction": -0.1}, {"toy": 0}):
        with pytest.raises(SpikformerError, match=next(iter(bad))):
            choose(targets, **bad)


def all_batches(split: Split, workers: int, start: int = 0):
    return list(batches(split, 16, train=True, seed=3, epoch=2, start=start, workers=workers))


@pytest.mark.parametrize("name, augment", [("digits", None), ("digits-dvs", PAPER["cifar10dvs"])])
def test_batches_do_not_depend_on_workers_nor_on_where_an_epoch_goes_on(name, augment):
    split = load(name, toy=12, augment=augment).train
    expected = all_batches(split, 0)
    assert len(expected) == 7
    for workers in (1, 2):
        for (x, y), (a, b) in zip(all_batches(split, workers), expected, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)
    for (x, y), (a, b) in zip(all_batches(split, 0, start=5), expected[5:], strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)


def test_batches_leave_the_global_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(batches(load("digits", toy=3).train, 8, train=True))
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Split):
    targets = torch.zeros(20, dtype=torch.int64)

    def fetch(self, indices, generator):
        raise SpikformerError("broken.png is no readable image: remove it")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_inside_a_worker_is_still_one_line(workers):
    with pytest.raises(SpikformerError) as caught:
        list(batches(Broken(), 4, workers=workers))
    assert str(caught.value) == "broken.png is no readable image: remove it"


def test_what_is_absent_says_why_to_whoever_asks():
    split = Absent("no train images in there: fetch them")
    for ask in (len, lambda s: s.targets, lambda s: list(batches(s, 4, train=True))):
        with pytest.raises(SpikformerError, match="no train images in there: fetch them"):
            ask(split)


def test_ranks_share_an_epoch_without_overlap():
    split = load("digits", toy=10).train
    seen = [torch.cat([y for _, y in batches(split, 10, rank=r, world=2)]) for r in range(2)]
    assert len(seen[0]) + len(seen[1]) == len(split)
    assert torch.equal(torch.cat(seen).bincount(), split.targets.bincount())
