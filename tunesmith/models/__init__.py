"""Networks: loading, packed batches, attention, generation, kernels and files."""

import sys

# Where the package `kernels` is installed, transformers and bitsandbytes download native code and run it, even offline.
# A module that is None cannot be imported. A program that has imported it before decides for itself.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
