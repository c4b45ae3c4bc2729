"""What all tests share: the option for the long ones."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--whole``."""
    parser.addoption("--whole", action="store_true", help="also run the tests that are marked whole: they take long")


def pytest_configure(config: pytest.Config) -> None:
    """The mark."""
    config.addinivalue_line("markers", "whole: takes long, so it runs with --whole only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they are asked for."""
    if config.getoption("--whole"):
        return
    long = [item for item in items if item.get_closest_marker("whole")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)
