"""Stage folders: complete or absent, continued after a kill, the same bytes either way."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tinyforge.errors import UsageError
from tinyforge.store import MANIFEST, Store, stage_key, verify, write_atomic

KEY = stage_key("invert", 1, {"steps": 3})
COUNT = 200
WRITER = """
    import sys, time
    from pathlib import Path
    from tinyforge.store import Store, stage_key

    def work(partial):
        for i in range({count}):
            name = f"images/{{i % 7:03d}}/{{i:05d}}.bin"
            if not partial.has(name):
                partial.write(name, str(i).encode() * 100)
                print(i, flush=True)
                time.sleep({pause})

    Store(Path(sys.argv[1])).build("invert", stage_key("invert", 1, {{"steps": 3}}), {{"steps": 3}}, work)
"""


def writer(root, pause=0.0, count=COUNT):
    """A process that writes many files into the stage."""
    script = textwrap.dedent(WRITER).format(count=count, pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def three_files(partial):
    for i in range(3):
        partial.write(f"{i}.txt", str(i).encode())


def interrupted(store, stage, work):
    """What a build leaves that fails after ``work``."""

    def fail(partial):
        work(partial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build(stage, KEY, {}, fail)


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestKey:
    def test_depends_on_every_part(self):
        keys = {
            stage_key("invert", 1, {"steps": 3}),
            stage_key("distill", 1, {"steps": 3}),
            stage_key("invert", 2, {"steps": 3}),
            stage_key("invert", 1, {"steps": 4}),
            stage_key("invert", 1, {"steps": 3}, ["a"]),
            stage_key("invert", 1, {"steps": 3}, ["a", "b"]),
            stage_key("invert", 1, {"steps": 3}, ["b", "a"]),
        }
        assert len(keys) == 7
        assert all(len(key) == 64 for key in keys)

    def test_does_not_depend_on_the_order_of_settings(self):
        assert stage_key("s", 1, {"a": 1, "b": {"c": 2, "d": 3}}) == stage_key("s", 1, {"b": {"d": 3, "c": 2}, "a": 1})

    def test_refuses_what_json_cannot_hold(self):
        with pytest.raises(ValueError, match="JSON"):
            stage_key("s", 1, {"a": float("nan")})


class TestBuild:
    def test_a_done_stage_is_not_made_again(self, tmp_path):
        store = Store(tmp_path)
        folder, was_there = store.build("invert", KEY, {}, three_files)
        assert (folder, was_there) == (tmp_path / f"invert-{KEY[:16]}", False)
        assert store.build("invert", KEY, {}, pytest.fail) == (folder, True)
        assert store.find("invert", KEY) == folder
        assert store.state("invert", KEY) == "done"
        assert not list(tmp_path.glob("*.partial"))

    def test_a_failure_leaves_a_partial_that_is_continued(self, tmp_path):
        store, written = Store(tmp_path), []

        def work(partial, last):
            for i in range(last):
                if not partial.has(f"{i}.txt"):
                    partial.write(f"{i}.txt", b"x")
                    written.append(i)
            if last < 5:
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError, match="power cut"):
            store.build("invert", KEY, {}, lambda partial: work(partial, 2))
        assert store.find("invert", KEY) is None
        assert store.state("invert", KEY) == "partial"
        store.build("invert", KEY, {}, lambda partial: work(partial, 5))
        assert written == [0, 1, 2, 3, 4]

    def test_no_resume_starts_anew(self, tmp_path):
        store = Store(tmp_path)
        interrupted(store, "invert", lambda partial: partial.write("old.txt", b"x"))
        folder, _ = store.build("invert", KEY, {}, three_files, resume=False)
        assert "old.txt" not in contents(folder)

    def test_overwrite_makes_it_again(self, tmp_path):
        store = Store(tmp_path)
        store.build("invert", KEY, {}, lambda partial: partial.write("old.txt", b"x"))
        folder, was_there = store.build("invert", KEY, {}, three_files, overwrite=True)
        assert not was_there
        assert sorted(contents(folder)) == ["0.txt", "1.txt", "2.txt", MANIFEST]

    def test_manifests_are_equal_bytes(self, tmp_path):
        first, second = (
            Store(tmp_path / name).build("invert", KEY, {"b": 1, "a": [2]}, three_files)[0] for name in "xy"
        )
        assert contents(first) == contents(second)
        manifest = json.loads((first / MANIFEST).read_text())
        assert sorted(manifest) == ["describe", "files", "key", "schema_version", "stage"]
        assert [record["path"] for record in manifest["files"]] == ["0.txt", "1.txt", "2.txt"]

    def test_needs_a_folder_it_can_write(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match=r"cannot be written.*--out"):
            Store(tmp_path / "file").build("invert", KEY, {}, three_files)


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda folder: (folder / "1.txt").write_bytes(b"?"), ["1.txt: changed"]),
            (lambda folder: (folder / "1.txt").unlink(), ["1.txt: missing"]),
            (lambda folder: (folder / "9.txt").write_bytes(b""), ["9.txt: not in the manifest"]),
            (lambda folder: (folder / MANIFEST).write_text("{"), [f"{MANIFEST}: missing or damaged"]),
            (lambda folder: (folder / MANIFEST).write_text("[" * 9999), [f"{MANIFEST}: missing or damaged"]),
            (
                lambda folder: (folder / MANIFEST).write_text(json.dumps({"key": KEY, "files": [1]})),
                [f"{MANIFEST}: missing or damaged"],
            ),
        ],
    )
    def test_is_found_and_mended(self, tmp_path, damage, told):
        store = Store(tmp_path)
        folder, _ = store.build("invert", KEY, {}, three_files)
        before = contents(folder)
        assert verify(folder) == []
        damage(folder)
        assert verify(folder) == told
        assert store.find("invert", KEY) is None
        assert store.state("invert", KEY) == "damaged"
        assert store.build("invert", KEY, {}, three_files) == (folder, False)
        assert contents(folder) == before

    @pytest.mark.parametrize("place", ["", ".partial"])
    @pytest.mark.parametrize("kind", ["file", "link", "link to nothing"])
    def test_what_is_no_folder_is_replaced(self, tmp_path, place, kind):
        intruder = tmp_path / "store" / f"invert-{KEY[:16]}{place}"
        intruder.parent.mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "precious").write_text("")
        if kind == "file":
            intruder.write_text("")
        else:
            intruder.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nothing"))
        folder, was_there = Store(tmp_path / "store").build("invert", KEY, {}, three_files)
        assert (sorted(contents(folder)), was_there) == (["0.txt", "1.txt", "2.txt", MANIFEST], False)
        assert (tmp_path / "elsewhere" / "precious").exists()

    def test_intact_files_are_kept_when_mending(self, tmp_path):
        store, written = Store(tmp_path), []

        def work(partial):
            for name in "ab":
                if not partial.has(name):
                    partial.write(name, name.encode())
                    written.append(name)

        folder, _ = store.build("invert", KEY, {}, work)
        (folder / "b").write_bytes(b"?")
        store.build("invert", KEY, {}, work)
        assert written == ["a", "b", "b"]


class TestFiles:
    def test_atomic_writing_replaces_and_leaves_nothing_else(self, tmp_path):
        for data in (b"one", b"two"):
            write_atomic(tmp_path / "deep" / "x", data)
        assert contents(tmp_path) == {"deep/x": b"two"}

    def test_a_full_disk_is_named_and_the_stage_is_continued_later(self, tmp_path):
        """The limit on the size of files stands for the disk: the same call fails, in the same place."""
        script = """
            import resource, signal, sys
            from pathlib import Path
            from tinyforge.cli.running import _fail
            from tinyforge.store import Store, stage_key

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            store = Store(Path(sys.argv[1]))
            try:
                store.build("invert", sys.argv[2], {}, lambda partial: partial.write("x", b"x" * 9000))
            except OSError as error:
                sys.exit(_fail(error, "build", False, False))
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), KEY]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert f"{tmp_path}/invert-{KEY[:16]}.partial/x: file too large: no space is left there" in done.stderr
        store = Store(tmp_path)
        assert store.state("invert", KEY) == "partial"
        assert sorted(contents(store.build("invert", KEY, {}, three_files)[0])) == ["0.txt", "1.txt", "2.txt", MANIFEST]

    def test_leftovers_of_a_killed_write_never_reach_the_manifest(self, tmp_path):
        def work(partial):
            (partial.path / "deep").mkdir()
            (partial.path / "deep" / ".scratch-abc").write_bytes(b"half")
            (partial.path / ".scratch-def").mkdir()
            (partial.path / ".scratch-def" / "x").write_bytes(b"half")
            (partial.path / MANIFEST).write_text("stale")

        store = Store(tmp_path)
        interrupted(store, "invert", work)
        folder, _ = store.build("invert", KEY, {}, three_files)
        assert sorted(contents(folder)) == ["0.txt", "1.txt", "2.txt", MANIFEST]

    def test_what_is_removed_does_not_reach_the_manifest(self, tmp_path):
        def work(partial):
            partial.write("checkpoints/1", b"x")
            partial.write("result", b"x")
            partial.remove("checkpoints")
            partial.remove("was never there")

        folder, _ = Store(tmp_path).build("distill", KEY, {}, work)
        assert sorted(contents(folder)) == [MANIFEST, "result"]


class TestProcesses:
    def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(self, tmp_path):
        finish(writer(tmp_path / "whole"))
        for kill_after in (1, 120, 130):  # files of this run; the third starts where the second was killed
            process = writer(tmp_path / "killed", pause=0.0005)
            for line in process.stdout:
                if int(line) >= kill_after:
                    break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            assert Store(tmp_path / "killed").state("invert", KEY) == "partial"
        finish(writer(tmp_path / "killed"))
        whole, killed = (Store(tmp_path / name).find("invert", KEY) for name in ("whole", "killed"))
        assert contents(whole) == contents(killed)
        assert len(contents(whole)) == COUNT + 1

    def test_a_second_process_on_the_same_key_is_told_who_holds_it(self, tmp_path):
        first = writer(tmp_path, pause=0.05)
        first.stdout.readline()  # it holds the lock now
        try:
            with pytest.raises(UsageError, match=f"made by another process \\(process {first.pid}\\)"):
                Store(tmp_path).build("invert", KEY, {}, pytest.fail)
            other = stage_key("invert", 1, {"steps": 4})
            assert Store(tmp_path).build("invert", other, {}, three_files)[1] is False
        finally:
            first.kill()
            first.communicate()

    def test_what_another_process_finished_before_the_lock_was_had_is_taken(self, tmp_path):
        class Slow(Store):
            def _locked(self, name):
                Store(self.root).build("invert", KEY, {}, three_files)
                return super()._locked(name)

        assert Slow(tmp_path).build("invert", KEY, {}, pytest.fail) == (tmp_path / f"invert-{KEY[:16]}", True)

    @pytest.mark.parametrize(
        ("first", "second", "told"),
        [
            (False, True, "in use by another process; wait"),
            (True, False, r"made anew by another process \(--overwrite\)"),
        ],
    )
    def test_what_others_read_is_not_made_again(self, tmp_path, first, second, told):
        store = Store(tmp_path)
        with store.in_use(alone=first), pytest.raises(UsageError, match=told), store.in_use(alone=second):
            pass
        with store.in_use(alone=False), store.in_use(alone=False):
            pass

    def test_the_lock_of_a_dead_process_is_no_lock(self, tmp_path):
        first = writer(tmp_path, pause=0.05)
        first.stdout.readline()
        first.kill()
        first.communicate()
        started = time.monotonic()
        folder, _ = Store(tmp_path).build("invert", KEY, {}, three_files)
        assert time.monotonic() - started < 5
        assert str(os.getpid()) in (tmp_path / ".locks" / folder.name).read_text()
