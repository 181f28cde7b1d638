"""Recipes, the training loop, and runs on disk."""

from .checkpoint import Run, load_pretrained, load_run
from .distributed import DistributedContext, choose_device, init_distributed, shutdown
from .evaluation import Score, evaluate, load_splits
from .loop import RunOptions, train
from .recipe import RECIPES, SHORT, Recipe, learning_rate, recipe_for

__all__ = [
    "RECIPES",
    "SHORT",
    "DistributedContext",
    "Recipe",
    "Run",
    "RunOptions",
    "Score",
    "choose_device",
    "evaluate",
    "init_distributed",
    "learning_rate",
    "load_pretrained",
    "load_run",
    "load_splits",
    "recipe_for",
    "shutdown",
    "train",
]
