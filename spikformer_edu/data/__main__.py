"""``python -m spikformer_edu.data`` runs ``data_command.py``, which stands above this folder."""

import runpy

if __name__ == "__main__":
    runpy.run_module("spikformer_edu.data_command", run_name="__main__")
