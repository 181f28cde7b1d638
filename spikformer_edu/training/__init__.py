"""Recipes, the training loop, and runs on disk."""

from .checkpoint import Run, load_pretrained, load_run
from .distributed import Place, choose_device, join, leave
from .loop import RunOptions, Score, evaluate, load_splits, train
from .recipe import RECIPES, Recipe, learning_rate, recipe_for

__all__ = [
    "RECIPES",
    "Place",
    "Recipe",
    "Run",
    "RunOptions",
    "Score",
    "choose_device",
    "evaluate",
    "join",
    "learning_rate",
    "leave",
    "load_pretrained",
    "load_run",
    "load_splits",
    "recipe_for",
    "train",
]
