"""Import matplotlib even if $MPLBACKEND is no backend here: notebooks set it for every process that they start."""

import os
import sys
import warnings
from importlib import import_module

if "matplotlib" not in sys.modules and "MPLBACKEND" in os.environ:
    named = os.environ.pop("MPLBACKEND")
    import matplotlib

    try:
        matplotlib.rcParams["backend"] = named
        if named.startswith("module://"):  # else it would be imported only with the first figure
            import_module(named.removeprefix("module://"))
    except (ValueError, ImportError):
        warnings.warn(f"MPLBACKEND={named} does not exist here: figures are drawn with agg", stacklevel=2)
        matplotlib.rcParams["backend"] = named = "agg"
    os.environ["MPLBACKEND"] = named
