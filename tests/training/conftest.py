"""Errors as a person at the command line reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from skt_components.training import name_options


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Expect an error whose message matches when options stand in the place of arguments: ``with refused(match):``."""

    @contextmanager
    def expect(match: str, kind: type[Exception] = ValueError) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        assert re.search(match, name_options(str(caught.value)))

    return expect
