import pytest

from tinyforge.errors import UsageError
from tinyforge.remote.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@raspberrypi.local", Address("raspberrypi.local", "pi")),
        ("ssh://pi@10.0.0.7:2222", Address("10.0.0.7", "pi", 2222)),
        ("ssh://board", Address("board")),
        ("ssh://pi@[fe80::1%25eth0]:22", Address("fe80::1%25eth0", "pi", 22)),
        ("ssh://pi@board/mnt/ssd", Address("board", "pi", None, "/mnt/ssd")),
        ("ssh://pi@board/", Address("board", "pi")),
        ("ssh://PI@MyPi:22/ssd", Address("MyPi", "PI", 22, "/ssd")),
        ("ssh://Pi@pi", Address("pi", "Pi")),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "pi@board",
        "http://board",
        "ssh://",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@board",
        "ssh://pi@board:70000",
        "ssh://pi@board:0",
        "ssh://pi@bo ard",
        "ssh://pi@board?x=1",
        "ssh://pi@board/a%0ab",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError):
        parse_address(text)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(UsageError, match="ssh-copy-id pi@board") as error:
        parse_address("ssh://pi:raspberry@board")
    assert "raspberry" not in str(error.value)
