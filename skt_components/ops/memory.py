"""The memory of tensors on a CPU."""

from __future__ import annotations

import os


def use_huge_pages() -> None:
    """Ask Linux for large memory pages for the tensors of this process; call it before the first tensor is made.

    <<<<<<< HEAD
        A picture of a megapixel has features of hundreds of megabytes, and Linux hands out their memory in pages of 4 KB,
        each with an interruption of the program. With pages of 2 MB a network on large pictures can take half the time.
        The commands and the training loop of the package call this function. It sets the variable ``THP_MEM_ALLOC_ENABLE``
        of PyTorch, unless it is set already. Systems other than Linux ignore it.
    =======
        The features of a picture of one megapixel need hundreds of megabytes. Linux gives memory in pages of 4 KB, and each
        new page interrupts the program. With pages of 2 MB a network on large pictures can take half the time.
        The installed commands and ``examples/train_full.py`` call this function. It sets the variable
        ``THP_MEM_ALLOC_ENABLE`` of PyTorch unless it is set already; other systems ignore it.
    >>>>>>> wt-reader

        Example:
            >>> use_huge_pages()
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
