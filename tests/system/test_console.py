# SPDX-License-Identifier: Apache-2.0
# lab: --memory 8192
"""The serial console on each back end: output, input, much of both, and clients that come and go."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tty
from collections.abc import Callable, Iterator

import pytest

from baton_lab import PROMPT, Console, Guest, user_directory, wait_for

MakeGuest = Callable[..., Guest]
BIG = 96 << 10  # each byte is an exit of the guest: a megabyte takes minutes under emulation


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest() as guest:
        yield guest.boot()


def test_socket_input_and_output(guest: Guest) -> None:
    assert guest.command("echo hello, console") == "hello, console"


def test_big_output_arrives_whole(guest: Guest) -> None:
    """Much output that the guest has summed before: nothing lost, nothing twice, nothing swapped."""
    guest.command(f"head -c {BIG * 3 // 4} /dev/urandom | base64 -w 64 > /tmp/big")
    expected = guest.command("sha256sum < /tmp/big").split()[0]
    output = guest.command("cat /tmp/big", 600)
    assert len(output) > BIG
    assert hashlib.sha256((output + "\n").encode()).hexdigest() == expected


def test_long_input_arrives_whole(guest: Guest) -> None:
    """Much more than the UART's FIFO, all at once; a terminal line takes up to 4095 bytes."""
    words = " ".join(f"{number:04}" for number in range(750))
    assert guest.command(f"echo {words} | md5sum").split()[0] == hashlib.md5((words + "\n").encode()).hexdigest()


def test_control_characters(guest: Guest) -> None:
    """Ctrl-C reaches the guest's terminal as what it is."""
    guest.console.send("sh -c 'trap \"echo interrupted; exit\" INT; echo ready; while :; do sleep 0.1; done'\n")
    guest.console.wait("ready")
    guest.console.send("\x03")
    guest.console.wait("interrupted")
    guest.console.wait(PROMPT)
    assert guest.command("echo still here") == "still here"


def test_client_that_leaves_and_another_one(guest: Guest) -> None:
    """The guest goes on without a client, and a new one takes over."""
    guest.command("(sleep 1; echo nobody reads this; echo done > /tmp/done) &")
    guest.consoles.pop().close()
    console = Console.on_socket(guest.console_path)
    guest.consoles.append(console)
    console.send("\n")
    console.command("true")
    wait_for("output without a reader", lambda: guest.console.status("cat /tmp/done")[1].endswith("done"))


def test_reader_that_pauses_loses_nothing(guest: Guest) -> None:
    """A client that does not read makes the UART wait; it drops nothing as long as it is connected."""
    token = guest.console.start("seq 1 4000")
    wait_for("backlog", lambda: guest.qmp.execute("query-status")["running"])  # QMP lives meanwhile
    status, output = guest.console.finish(token, 600)
    assert status == 0
    assert output.split() == [str(number) for number in range(1, 4001)]


def test_file(make_guest: MakeGuest) -> None:
    path = user_directory("file") / "console.txt"
    guest = make_guest(serial=f"file:{path}", append="baton.run=" + encode("echo from the file; seq 1 500; stty sane")).start()
    assert guest.exit_status() == 0
    text = path.read_text().replace("\r", "")
    assert "from the file\n1\n2\n" in text
    assert "\n499\n500\n" in text  # stty has waited until the terminal had sent everything


def encode(script: str) -> str:
    return subprocess.run(["base64", "-w0"], input=script, text=True, capture_output=True, check=True).stdout


def test_pty(make_guest: MakeGuest) -> None:
    guest = make_guest(serial="pty").start()
    found = wait_for("the name of the pty", lambda: re.search(r"/dev/pts/\d+", guest.log))
    terminal = os.open(found[0], os.O_RDWR | os.O_NOCTTY)
    try:
        tty.setraw(terminal)
        console = Console.on_descriptor(terminal, terminal)
        guest.consoles.append(console)
        console.wait_prompt()
        assert console.command("echo $((7 * 6))") == "42"
        console.send("exit\n")
        assert guest.exit_status() == 0
    finally:
        os.close(terminal)


def test_stdio(make_guest: MakeGuest) -> None:
    """-nographic style: pipes on standard input and output, and the guest's power-off ends the process."""
    guest = make_guest(serial="stdio")
    guest.start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert guest.process and guest.process.stdin and guest.process.stdout
    console = Console.on_descriptor(guest.process.stdout.fileno(), guest.process.stdin.fileno())
    guest.consoles.append(console)
    console.wait_prompt()
    assert console.command("echo through pipes") == "through pipes"
    console.send("exit\n")
    assert guest.exit_status() == 0


def test_end_of_input_is_not_the_end(make_guest: MakeGuest) -> None:
    """Standard input that ends (a script's /dev/null) leaves the guest running."""
    guest = make_guest(serial="stdio", append="baton.run=" + encode("sleep 1; echo ran to its end"))
    guest.start(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert guest.process
    output, _ = guest.process.communicate(timeout=240)
    assert b"ran to its end" in output
    assert guest.exit_status() == 0


def test_no_console(make_guest: MakeGuest) -> None:
    """-serial none: no UART answers, and the guest boots all the same."""
    guest = make_guest(serial="none", append="baton.run=" + encode("poweroff -f")).start()
    assert guest.exit_status() == 0
