# SPDX-License-Identifier: Apache-2.0
# lab-all: --timeout 9000 --memory 3072 --device nvme --device virtio-blk:size=64M --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff
"""The whole fault matrix, which takes long: see faults.py."""

from __future__ import annotations

import pytest

import faults

subject = pytest.fixture(scope="module")(faults.account)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    faults.generate(metafunc, lambda every, _: every, ("hello", "quiesce", "go"))


def test_nothing_is_lost(subject: faults.Subject, fault: faults.Fault) -> None:
    subject.suffer(fault)
