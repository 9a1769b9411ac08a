"""The jobs that run on a board, run here."""

import hashlib

from tinyforge.remote.agent import assemble, clean, inventory, last_line


def put(folder, content, name=None):
    blob = hashlib.sha256(content).hexdigest()
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "blobs" / (name or blob)).write_bytes(content)
    return blob


def test_inventory_asks_for_what_is_missing_damaged_or_partial(tmp_path):
    whole = put(tmp_path, b"whole")
    arrived = hashlib.sha256(b"arrived").hexdigest()
    put(tmp_path, b"arrived", f"{arrived}.partial")
    half, damaged = (hashlib.sha256(word).hexdigest() for word in (b"half and half", b"sound"))
    put(tmp_path, b"half", f"{half}.partial")
    put(tmp_path, b"rotten", damaged)
    (tmp_path / "tree-0123456789abcdef.new" / "x").mkdir(parents=True)
    found = inventory(tmp_path, {whole: 5, arrived: 7, half: 13, damaged: 5})
    assert found["missing"] == [half, damaged]
    assert found["partial"] == {half: 4}
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {whole, arrived, f"{half}.partial"}
    assert not (tmp_path / "tree-0123456789abcdef.new").exists()


def test_a_partial_file_that_is_too_long_is_begun_anew(tmp_path):
    blob = hashlib.sha256(b"short").hexdigest()
    put(tmp_path, b"wrong and long", f"{blob}.partial")
    assert inventory(tmp_path, {blob: 5})["partial"] == {}


def test_assemble_makes_the_whole_tree_or_none(tmp_path):
    blob = put(tmp_path, b"x")
    rotten = hashlib.sha256(b"y").hexdigest()
    put(tmp_path, b"z", rotten)
    assert assemble(tmp_path, "tree-1", {"a/b.txt": blob, "c": rotten}) == {"damaged": [rotten]}
    assert not (tmp_path / "tree-1").exists()
    assert not (tmp_path / "blobs" / rotten).exists()
    assert assemble(tmp_path, "tree-1", {"a/b.txt": blob})["damaged"] == []
    assert (tmp_path / "tree-1/a/b.txt").read_bytes() == b"x"
    assert "leaves the folder" in assemble(tmp_path, "tree-2", {"../x": blob})["fault"]


def test_clean_leaves_nothing_of_its_own_and_everything_else(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    put(home, b"x")
    (home / "lock").touch()
    (home / "tree-1").mkdir()
    (home / "tree-2").mkdir()
    assert clean(home, ["tree-1", "venv-1"]) == {"left": ["tree-2"]}
    assert clean(home, ["tree-2"]) == {"left": []}
    assert not home.exists()


def test_the_line_that_tells():
    assert last_line("a\nERROR: no wheel\n\nhint\n") == "ERROR: no wheel"
    assert last_line("a\nb\n\n") == "b"
    assert last_line("") == ""
