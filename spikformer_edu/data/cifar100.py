"""CIFAR-100: CIFAR-10's format with a hundred classes."""

from functools import partial

from . import cifar10
from .base import DatasetInfo

_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

INFO = DatasetInfo(
    name="cifar100",
    title="CIFAR-100",
    classes=tuple(_CLASSES.split()),
    channels=3,
    image_size=32,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    default_model="cifar100-4-384",
    folder="cifar100",
    obtain="put cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html there, or class folders "
    "train/<class>/* and test/<class>/*",
    licence="none stated; used for research and teaching",
    citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, University of Toronto, 2009",
    samples={"train": 50_000, "test": 10_000},
)


load = partial(cifar10.load, info=INFO)
count = partial(cifar10.count, info=INFO)
