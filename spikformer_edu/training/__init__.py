"""Recipes, the training loop, and runs on disk."""

from .checkpoint import Run, load_pretrained, load_run
from .distributed import choose_device
from .loop import Score, evaluate, train
from .recipe import RECIPES, Recipe, learning_rate, recipe_for

__all__ = [
    "RECIPES",
    "Recipe",
    "Run",
    "Score",
    "choose_device",
    "evaluate",
    "learning_rate",
    "load_pretrained",
    "load_run",
    "recipe_for",
    "train",
]
