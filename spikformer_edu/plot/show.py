"""Show figures in a notebook, each with a description for readers who cannot see it."""

import base64
import io
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure

from ..errors import SpikformerError


def show(figure: Figure | FuncAnimation, alt: str, dpi: int = 96) -> None:
    """Display a figure, or an animation as an animated PNG, with its description, and close it.

    Args:
        figure: figure or animation from a function of ``se.plot``, or any other of matplotlib.
        alt: description for readers who cannot see it: what is drawn and what it shows, in a sentence or two.
        dpi: resolution, in pixels per inch.

    Raises:
        SpikformerError: a description of less than 20 letters, or not in a notebook's environment (IPython missing).
    """
    if len(alt) < 20:
        raise SpikformerError(f"alt={alt!r}: say in a sentence what the figure shows, for readers who cannot see it")
    try:
        from IPython.display import display
    except ImportError:
        raise SpikformerError("se.plot.show is for notebooks: pip install jupyter, or use fig.savefig(...)") from None
    # We make the PNG instead of the notebook: the same file on every build, with alt text, and shown once.
    if isinstance(figure, FuncAnimation):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "animation.png"
            figure.save(path, writer="pillow", dpi=dpi)
            data = path.read_bytes()
        plt.close(figure._fig)  # type: ignore[attr-defined]  # an animation's figure has no public name
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        data = buffer.getvalue()
        plt.close(figure)
    content = {"image/png": base64.b64encode(data).decode(), "text/plain": alt}
    display(content, metadata={"image/png": {"alt": alt}}, raw=True)
