# SPDX-License-Identifier: Apache-2.0
# lab: --timeout 2400 --memory 3072 --device nvme --device virtio-blk:size=64M --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff
"""Faults at every stage of a hand-over, on both sides and back ends: a part of the matrix, which test_every_fault.py has whole."""

from __future__ import annotations

import pytest

import faults

subject = pytest.fixture(scope="module")(faults.account)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    faults.generate(metafunc, faults.part_of, ("hello",))


def test_nothing_is_lost(subject: faults.Subject, fault: faults.Fault) -> None:
    subject.suffer(fault)
