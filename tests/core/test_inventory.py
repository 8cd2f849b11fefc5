"""The file of a fleet's boards: strict, and every message names the board and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.core import inventory
from edgeclf.core.errors import ConfigError
from edgeclf.core.inventory import BoardEntry, Inventory

FLEET = """
[[boards]]
host = "shed.local"
user = "pi"
profile = "raspberry-pi-4"
groups = ["barn", "north"]
service = true
ssh_options = ["-i", "keys/barn"]

[[boards]]
host = "gateway"
port = 2201
groups = ["barn"]

[[boards]]
host = "gateway"
port = 2202
groups = ["attic"]
"""


def read(folder: Path, text: str = FLEET) -> Inventory:
    (folder / "devices.toml").write_text(text, encoding="utf-8")
    return inventory.read(folder / "devices.toml")


def test_every_board_has_a_name_of_its_own_and_what_its_entry_says(tmp_path: Path) -> None:
    """The host; with its port where two boards stand behind one host."""
    found = read(tmp_path)
    assert list(found.boards) == ["shed.local", "gateway:2201", "gateway:2202"]
    assert found.boards["shed.local"] == BoardEntry(
        "shed.local", "pi", None, "raspberry-pi-4", ("barn", "north"), True, ssh_options=("-i", "keys/barn")
    )
    assert [board.target for board in found.boards.values()] == ["pi@shed.local", "gateway", "gateway"]


@pytest.mark.parametrize(
    ("groups", "only", "names"),
    [
        ([], [], ["shed.local", "gateway:2201", "gateway:2202"]),
        (["barn"], [], ["shed.local", "gateway:2201"]),
        (["north", "attic"], [], ["shed.local", "gateway:2202"]),
        (["barn"], ["gateway:2201"], ["gateway:2201"]),
        ([], ["gateway:2202", "shed.local"], ["shed.local", "gateway:2202"]),
    ],
)
def test_groups_and_names_choose_boards_in_the_order_of_the_file(
    tmp_path: Path, groups: list[str], only: list[str], names: list[str]
) -> None:
    """A board is chosen that stands in any of the groups, and that `only` names where it names some."""
    assert list(read(tmp_path).chosen(groups, only)) == names


@pytest.mark.parametrize(
    ("groups", "only", "message"),
    [
        (["bran"], [], r"devices\.toml: no group 'bran'; did you mean 'barn'\? \(known: attic, barn, north\)"),
        ([], ["shed.lokal"], r"no board 'shed.lokal'; did you mean 'shed\.local'\?"),
        (["barn"], ["gateway:2202"], r"gateway:2202 is not in barn"),
    ],
)
def test_what_the_file_does_not_know_is_named_with_what_it_knows(
    tmp_path: Path, groups: list[str], only: list[str], message: str
) -> None:
    """Enough to correct the command."""
    with pytest.raises(ConfigError, match=message):
        read(tmp_path).chosen(groups, only)


def test_a_file_without_groups_says_so(tmp_path: Path) -> None:
    """Nothing is known that could be listed."""
    with pytest.raises(ConfigError, match="no group 'barn'; no board there names a group"):
        read(tmp_path, '[[boards]]\nhost = "shed"\n').chosen(["barn"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"devices\.toml: expected a section \[\[boards\]\]"),
        ("boards = []", r"expected a section \[\[boards\]\]"),
        ("boards = [1]", r"expected a section \[\[boards\]\]"),
        ("[boards]\nhost = 'a'", r"expected a section \[\[boards\]\]"),
        ("[[board]]\nhost = 'a'", r"unknown key 'board'; did you mean 'boards'\?"),
        ("[[boards]]\nhost = 'a'\nuzer = 'b'", r"board 1 \(a\): unknown key 'uzer'; did you mean 'user'\?"),
        ("[[boards]]\nuser = 'a'", r"board 1: missing key 'host'"),
        ("[[boards]]\nhost = ''", r"board 1: host = '': expected the name of a board"),
        ("[[boards]]\nhost = 'pi@a'", r"the user stands in 'user'"),
        ("[[boards]]\nhost = 'a'\nport = 70000", r"board 1 \(a\): port = 70000: must lie between 1 and 65535"),
        ("[[boards]]\nhost = 'a'\nport = '22'", r"port: expected int"),
        ("[[boards]]\nhost = 'a'\ngroups = 'barn'", r"groups: expected a list"),
        ("[[boards]]\nhost = 'a'\ngroups = ['x,y']", r"groups: 'x,y': expected a name without a comma"),
        ("[[boards]]\nhost = 'a'\n[[boards]]\nhost = 'a'", r"board 2: a is there already"),
        ("[[boards]]\nhost = 'a'\nport = 1\n[[boards]]\nhost = 'a'\nport = 1", r"board 2: a:1 is there already"),
        ("boards = ", r"not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_board_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_an_endless_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """By its size, and by its number of boards."""
    with pytest.raises(ConfigError, match="larger than 1 MB"):
        read(tmp_path, "# " + "x" * inventory.MOST_BYTES)
    many = "".join(f"[[boards]]\nhost = 'b{number}'\n" for number in range(inventory.MOST_BOARDS + 1))
    with pytest.raises(ConfigError, match="1001 boards; 1000 are possible"):
        read(tmp_path, many)


def test_names_may_be_given_together_or_one_by_one() -> None:
    """With commas, as 'deploy' prints them."""
    assert inventory.words(["a, b", "c", ","]) == ["a", "b", "c"]
