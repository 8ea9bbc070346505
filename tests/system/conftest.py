# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the system tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.register_assert_rewrite("baton_lab")

from baton_lab import Guest  # noqa: E402 (after the registration)


@pytest.fixture(scope="module", params=["iommufd0", ""], ids=["iommufd", "container"])
def iommufd(request: pytest.FixtureRequest) -> str:
    """For tests of both back ends: what vfio_options and nvme_guest take by that name."""
    return request.param


@pytest.fixture
def make_guest() -> Iterator[Callable[..., Guest]]:
    """Makes guests that end with the test; they are reported when it fails."""
    guests: list[Guest] = []

    def make(*options: str, **more: Any) -> Guest:
        guests.append(Guest(*options, **more))
        return guests[-1]

    yield make
    for guest in guests:
        guest.destroy()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test's report shows the logs of every guest that it used, whichever fixture made it."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if not report.failed:
        return
    for guest in Guest.living:
        report.sections.append((guest.name, guest.report()))
