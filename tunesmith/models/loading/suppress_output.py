"""Suppression of the progress bars, notes and warnings of transformers and the Hub client."""

from __future__ import annotations

import logging as python_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# On its first import (PEFT imports it for LoRA), bitsandbytes asks for a kernel from the Hub, which is not used here:
# see `quantization.normalize_quantized`.
python_logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(python_logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Enter a context in which transformers and the Hub client print nothing; their settings are restored after it."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()  # also switches off the Hub's bars
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
