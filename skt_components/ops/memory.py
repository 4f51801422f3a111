"""The memory of tensors on a CPU."""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Ask Linux for large memory pages for the tensors of this process. Call it before the first tensor is made.

    The features of a picture of one megapixel fill hundreds of megabytes. Linux gives memory in pages of 4 KB,
    and each page interrupts the program. Pages of 2 MB cause fewer interruptions, so large pictures are faster. The
    commands and the training loop of the package call this function. It sets the variable ``THP_MEM_ALLOC_ENABLE`` of
    PyTorch, unless it is set already. Systems other than Linux ignore it.

    Example:
        >>> use_huge_pages()
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
