# SPDX-License-Identifier: Apache-2.0
# lab: --memory 8192
"""QMP against a live process: QEMU's names and shapes, hostile input, several clients, and Debian's own client."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from baton_lab import Guest, Qmp, QmpError, cpr_channel, open_files

COMMANDS = {
    "qmp_capabilities", "query-version", "query-commands", "query-status", "query-name", "stop", "cont", "quit",
    "system_powerdown", "system_reset", "migrate-set-parameters", "query-migrate-parameters", "migrate-set-capabilities",
    "migrate", "query-migrate", "migrate_cancel", "trace-event-get-state", "trace-event-set-state",
}


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest("-S") as guest:
        yield guest.start()


@pytest.fixture
def qmp(guest: Guest) -> Iterator[Qmp]:
    with Qmp(guest.qmp_path) as client:
        yield client


def error(qmp: Qmp, data: bytes) -> dict[str, Any]:
    """Sends bytes that must be answered by an error, and checks that the connection still works."""
    qmp.raw(data)
    answer = qmp.answer()
    assert set(answer) <= {"error", "id"} and set(answer["error"]) == {"class", "desc"}, answer
    assert qmp.execute("query-status")["status"] == "prelaunch"
    return answer


def test_greeting(guest: Guest) -> None:
    with Qmp(guest.qmp_path, negotiate=False) as qmp:
        version = qmp.greeting["QMP"]["version"]
        assert set(version["qemu"]) == {"major", "minor", "micro"}
        assert isinstance(version["package"], str)
        assert isinstance(qmp.greeting["QMP"]["capabilities"], list)


def test_commands_before_negotiation(guest: Guest) -> None:
    with Qmp(guest.qmp_path, negotiate=False) as qmp:
        with pytest.raises(QmpError) as caught:
            qmp.execute("query-status")
        assert caught.value.error_class == "CommandNotFound"
        qmp.execute("qmp_capabilities")
        assert qmp.execute("query-status")["status"] == "prelaunch"


def test_negotiation_twice(qmp: Qmp) -> None:
    with pytest.raises(QmpError) as caught:
        qmp.execute("qmp_capabilities")
    assert caught.value.error_class == "CommandNotFound"


def test_query_commands(qmp: Qmp) -> None:
    assert {entry["name"] for entry in qmp.execute("query-commands")} >= COMMANDS


def test_queries(guest: Guest, qmp: Qmp) -> None:
    assert qmp.execute("query-version") == qmp.greeting["QMP"]["version"]
    assert qmp.execute("query-name") == {"name": guest.name}
    assert qmp.execute("query-status") == {"status": "prelaunch", "running": False}
    assert qmp.execute("query-migrate") == {}


def test_migration_parameters(qmp: Qmp) -> None:
    assert qmp.execute("query-migrate-parameters")["mode"] == "normal"
    qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    assert qmp.execute("query-migrate-parameters")["mode"] == "cpr-transfer"
    qmp.execute("migrate-set-parameters", mode="normal")
    for arguments in ({"mode": "cpr-reboot"}, {"mode": 5}, {"no_such": 1}):
        with pytest.raises(QmpError) as caught:
            qmp.execute("migrate-set-parameters", **arguments)
        assert caught.value.error_class == "GenericError"


def test_migration_capabilities(qmp: Qmp) -> None:
    qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    assert {"capability": "events", "state": True} in qmp.execute("query-migrate-capabilities")
    for wrong in ({"capability": "postcopy-ram", "state": True}, {"capability": "events"}, {"capability": "events", "state": 1}, 7):
        with pytest.raises(QmpError):
            qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": False}, wrong])
    assert {"capability": "events", "state": True} in qmp.execute("query-migrate-capabilities"), "all or nothing"


@pytest.mark.parametrize("arguments", [
    {}, {"uri": "unix:/tmp/x"}, {"channels": []}, {"channels": [{"channel-type": "cpr"}]},
    {"channels": [cpr_channel("")]}, {"channels": [cpr_channel("/a"), cpr_channel("/b")]},
    {"channels": [{"channel-type": "cpr", "addr": {"transport": "socket", "type": "inet", "host": "h", "port": "1"}}]},
    {"channels": "x"}, {"channels": [1]},
])
def test_migrate_with_wrong_arguments(qmp: Qmp, arguments: dict[str, Any]) -> None:
    qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    with pytest.raises(QmpError) as caught:
        qmp.execute("migrate", **arguments)
    assert caught.value.error_class == "GenericError"
    assert qmp.execute("query-status")["status"] == "prelaunch"
    assert qmp.execute("query-migrate") == {}


def test_migrate_needs_the_mode(qmp: Qmp) -> None:
    qmp.execute("migrate-set-parameters", mode="normal")
    with pytest.raises(QmpError, match="cpr-transfer"):
        qmp.execute("migrate", channels=[cpr_channel("/tmp/nobody")])


def test_cancel_of_nothing(qmp: Qmp) -> None:
    assert qmp.execute("migrate_cancel") == {}


@pytest.mark.parametrize("data", [
    b"nonsense\n", b"{\n}{]\n", b'{"execute": "query-status"\x00}\n', b"\xff\xfe\xfd\n", b'{"execute": "\xc3\x28"}\n', b"}\n",
    b'{"execute": "query-status",}\n', b'"unterminated\n',
], ids=repr)
def test_malformed(guest: Guest, data: bytes) -> None:
    """An error object, and the server goes on. (The client may have to send a line of its own to be in step again.)"""
    with Qmp(guest.qmp_path) as qmp:
        qmp.raw(data)
        answer = qmp.answer()
        assert answer["error"]["class"] == "GenericError"
        qmp.raw(b'{"execute": "query-name", "id": "in step"}\n')
        while answer.get("id") != "in step":
            answer = qmp.answer()
        assert "return" in answer


@pytest.mark.parametrize("data", [
    b"[]\n", b"7\n", b'"text"\n', b"null\n", b"{}\n", b'{"execute": 5}\n', b'{"execute": "stop", "bogus": 1}\n',
    b'{"execute": "query-status", "arguments": 5}\n', b'{"execute": "query-status", "arguments": {"bogus": 1}}\n',
    b'{"execute": "no-such-command"}\n', b'{"arguments": {}}\n', b'{"execute": ""}\n',
], ids=repr)
def test_wrong_messages(qmp: Qmp, data: bytes) -> None:
    answer = error(qmp, data)
    assert answer["error"]["class"] == ("CommandNotFound" if b"no-such" in data or b'""' in data else "GenericError")


def test_ids_come_back(qmp: Qmp) -> None:
    for ident in ("text", 5, None, {"a": [1, 2.5]}, [True]):
        qmp.raw(json.dumps({"execute": "query-name", "id": ident}).encode() + b"\n")
        assert qmp.answer()["id"] == ident
    assert error(qmp, b'{"execute": "no-such-command", "id": "x"}\n')["id"] == "x"


def test_pipelined_and_cut(qmp: Qmp) -> None:
    """Many commands in one packet, then one command a byte at a time: answers come in order."""
    qmp.raw(b"".join(b'{"execute":"query-name","id":%d}' % number for number in range(200)))
    assert [qmp.answer()["id"] for _ in range(200)] == list(range(200))
    for byte in b'{"execute": "query-name", "id": "bytes"}\n':
        qmp.raw(bytes([byte]))
    assert qmp.answer()["id"] == "bytes"


def test_oversized(guest: Guest) -> None:
    """A message without end is answered by an error or a closed connection; nobody else notices."""
    with Qmp(guest.qmp_path) as greedy, Qmp(guest.qmp_path) as other:
        chunk = b'{"execute": "' + b"x" * (1 << 20)
        answered = False
        try:
            for _ in range(80):
                greedy.raw(chunk)
            answered = "error" in greedy.answer()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            answered = True
        assert answered
        assert other.execute("query-name") == {"name": guest.name}


def test_deeply_nested(guest: Guest) -> None:
    with Qmp(guest.qmp_path) as qmp, Qmp(guest.qmp_path) as other:
        try:
            qmp.raw(b"[" * 100000 + b"\n")
            assert "error" in qmp.answer()
        except (BrokenPipeError, ConnectionResetError, EOFError):
            pass
        assert other.execute("query-name") == {"name": guest.name}


def test_client_that_does_not_read(guest: Guest, qmp: Qmp) -> None:
    """It is disconnected at some point; others are served all the while."""
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(guest.qmp_path))
    deaf.settimeout(1)
    try:
        deaf.sendall(b'{"execute": "qmp_capabilities"}\n')
        for _ in range(2000):
            deaf.sendall(b'{"execute": "query-commands"}' * 50)
    except (BrokenPipeError, ConnectionResetError, TimeoutError):
        pass
    assert qmp.execute("query-name") == {"name": guest.name}
    deaf.close()
    assert qmp.execute("query-name") == {"name": guest.name}


def test_clients_that_vanish(guest: Guest, qmp: Qmp) -> None:
    """Connections closed at every point of the protocol leave nothing behind."""
    before = len(open_files(guest.pid))
    for data in (b"", b"{", b'{"execute": "qmp_capabilities"}', b'{"execute": "qmp_capabilities"}{"execute": "query-comm'):
        for _ in range(20):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(guest.qmp_path))
            client.sendall(data)
            client.close()
    for _ in range(100):
        if len(open_files(guest.pid)) <= before:
            break
        qmp.execute("query-status")
    assert len(open_files(guest.pid)) <= before


def test_too_many_clients(guest: Guest, qmp: Qmp) -> None:
    """Those beyond the limit are turned away, and room comes back."""
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for client in crowd:
        client.connect(str(guest.qmp_path))
    assert qmp.execute("query-name") == {"name": guest.name}
    for client in crowd:
        client.close()
    with Qmp(guest.qmp_path) as late:
        assert late.execute("query-name") == {"name": guest.name}


def test_events_reach_every_client(guest: Guest, qmp: Qmp) -> None:
    with Qmp(guest.qmp_path) as second, Qmp(guest.qmp_path, negotiate=False) as silent:
        qmp.execute("cont")
        for client in (qmp, second):
            event = client.event("RESUME")
            assert set(event["timestamp"]) == {"seconds", "microseconds"}
        qmp.execute("stop")
        assert second.event("STOP")
        silent.execute("qmp_capabilities")
        assert silent.events == [], "no events before negotiation"


def test_debian_client(guest: Guest) -> None:
    """qemu.qmp, QEMU's own asynchronous client."""
    from qemu.qmp import ExecuteError, QMPClient

    async def talk() -> None:
        client = QMPClient(guest.name)
        await client.connect(str(guest.qmp_path))
        assert (await client.execute("query-status"))["running"] is False
        assert await client.execute("query-name") == {"name": guest.name}
        with client.listener(("RESUME", "STOP")) as events:
            await client.execute("cont")
            assert (await events.get())["event"] == "RESUME"
            await client.execute("stop")
            assert (await events.get())["event"] == "STOP"
        with pytest.raises(ExecuteError):
            await client.execute("no-such-command")
        await client.disconnect()

    asyncio.run(talk())


def test_quit_is_answered(guest: Guest) -> None:
    """Last of this guest."""
    with Qmp(guest.qmp_path) as qmp:
        assert qmp.execute("quit") == {}
        assert qmp.event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
    assert guest.exit_status() == 0
