"""Reading, checking and splitting labelled images; finding copies."""

import io
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyforge import images as images_module
from tinyforge.duplicates import exact_duplicates, near_duplicates
from tinyforge.errors import DataError
from tinyforge.images import (
    ImageSet,
    Item,
    content_hash,
    read_images,
)
from tinyforge.splits import k_shot_split


def picture(seed: int, size: int = 24) -> np.ndarray:
    """A smooth random picture, uint8 (size, size, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def encoded(rgb: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, kind, **options)
    return stream.getvalue()


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(rgb, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"))


def fill(root, counts):
    """A folder of class folders, every picture another."""
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write(root / name / f"{i:02d}.png", picture(1000 * c + i))
    return root


def in_memory(counts):
    items = [
        Item(f"{name}/{i}", label, f"{label}-{i}", picture(100 * label + i, 8))
        for label, (name, count) in enumerate(counts.items())
        for i in range(count)
    ]
    return ImageSet(tuple(counts), tuple(items))


def fault_lines(call, *arguments, **options):
    with pytest.raises(DataError) as caught:
        call(*arguments, **options)
    return str(caught.value).splitlines()


class TestFolder:
    def test_reads_classes_in_order_of_their_names(self, tmp_path):
        found = read_images(fill(tmp_path, {"b": 2, "a": 3}))
        assert found.classes == ("a", "b")
        assert found.names == ("a/00.png", "a/01.png", "a/02.png", "b/00.png", "b/01.png")
        assert found.labels.dtype == np.int64
        assert found.labels.tolist() == [0, 0, 0, 1, 1]
        np.testing.assert_array_equal(found.rgb[4], picture(1))  # 'b' was filled first

    def test_takes_nested_files_any_case_and_ignores_the_rest(self, tmp_path):
        fill(tmp_path, {"a": 1, "b": 1})
        write(tmp_path / "a" / "deep" / "er" / "X.JPG", picture(7))
        (tmp_path / "a" / "notes.txt").write_text("no image")
        (tmp_path / "README.md").write_text("no image")
        (tmp_path / "a" / ".hidden.png").write_bytes(b"junk")
        (tmp_path / ".git").mkdir()
        (tmp_path / "__MACOSX").mkdir()
        found = read_images(tmp_path)
        assert found.names == ("a/00.png", "a/deep/er/X.JPG", "b/00.png")
        assert found.ignored == 2

    @pytest.mark.parametrize("name", ["a.heic", "a.AVIF", "raw.cr2"])
    def test_pictures_that_it_does_not_read_are_named(self, tmp_path, name):
        fill(tmp_path, {"a": 1, "b": 1})
        (tmp_path / "a" / name).write_bytes(b"not read")
        assert f"a/{name}: " in fault_lines(read_images, tmp_path)[1]
        assert "convert it" in fault_lines(read_images, tmp_path)[1]

    @pytest.mark.parametrize("name", ["a.jfif", "a.ppm"])
    def test_less_usual_endings_are_read(self, tmp_path, name):
        fill(tmp_path, {"a": 1, "b": 1})
        Image.fromarray(picture(1)).save(tmp_path / "a" / name)
        assert f"a/{name}" in read_images(tmp_path).names

    def test_the_parts_of_a_data_set_are_no_classes(self, tmp_path):
        fill(tmp_path, {"train/a": 1, "train/b": 1, "Test/a": 1})
        assert "(Test, train) are parts of a data set" in fault_lines(read_images, tmp_path)[1]
        assert read_images(tmp_path / "train").classes == ("a", "b")

    def test_names_every_faulty_file_with_its_reason(self, tmp_path):
        fill(tmp_path, {"a": 2, "b": 1})
        whole = encoded(picture(3, 64))
        (tmp_path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "a" / "empty.png").write_bytes(b"")
        (tmp_path / "b" / "text.jpg").write_text("this is no picture")
        (tmp_path / "loose.png").write_bytes(whole)
        (tmp_path / "c").mkdir()
        write(tmp_path / "b" / "huge.png", picture(4, 300))
        lines = fault_lines(read_images, tmp_path, max_pixels=10_000)
        assert lines[0] == f"{tmp_path}: 6 problems"
        for name, reason in {
            "a/cut.png": "truncated",
            "a/empty.png": "empty",
            "b/text.jpg": "not an image",
            "b/huge.png": "pixels",
            "loose.png": "outside any class folder",
            "c/": "no images",
        }.items():
            assert any(name in line and reason in line for line in lines[1:]), (name, lines)

    @pytest.mark.parametrize("kind", ["pipe", "endless"])
    def test_what_never_ends_is_not_read(self, tmp_path, kind):
        fill(tmp_path, {"a": 1, "b": 1})
        if kind == "pipe":
            os.mkfifo(tmp_path / "a" / "x.png")
        else:
            (tmp_path / "a" / "x.png").symlink_to("/dev/zero")
        assert fault_lines(read_images, tmp_path)[1:] == ["  a/x.png: is not a regular file"]

    @pytest.mark.parametrize(
        ("link", "to", "told"),
        [
            ("a/loop", ".", "leads to the folder a;"),
            ("a/up", "..", "leads to the folder .;"),
            ("a/other", "../b", "leads to the folder "),
            ("c", "b", "leads to the folder b;"),
            ("a/far", "../..", "leads to a folder above these;"),
        ],
    )
    def test_a_folder_met_twice_is_a_fault(self, tmp_path, link, to, told):
        root = fill(tmp_path / "data", {"a": 3, "b": 2})
        (root / link).symlink_to(to)
        faults = fault_lines(read_images, root)[1:]
        assert len(faults) == 1
        assert told in faults[0]

    def test_a_link_to_a_folder_elsewhere_is_followed(self, tmp_path):
        root = fill(tmp_path / "data", {"a": 1})
        fill(tmp_path / "elsewhere", {"pictures": 2})
        (root / "b").symlink_to(tmp_path / "elsewhere" / "pictures")
        assert read_images(root).names == ("a/00.png", "b/00.png", "b/01.png")

    @pytest.mark.parametrize("name", [b"caf\xe9", b"a/caf\xe9.png", b"a/caf\xe9"])
    def test_names_that_are_no_text_are_refused(self, tmp_path, name):
        fill(tmp_path, {"a": 1, "b": 1})
        path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118
        write(path if path.suffix else path / "x.png", picture(3))
        (fault,) = fault_lines(read_images, tmp_path)[1:]
        assert "caf\\udce9" in fault
        assert "not UTF-8; rename it" in fault

    @pytest.mark.parametrize("source", ["", " "])
    def test_an_empty_path_is_not_the_current_folder(self, tmp_path, monkeypatch, source):
        monkeypatch.chdir(fill(tmp_path, {"a": 1, "b": 1}))
        assert "empty path" in fault_lines(read_images, source)[0]

    def test_lists_at_most_twenty_faults(self, tmp_path):
        fill(tmp_path, {"a": 1, "b": 1})
        for i in range(30):
            (tmp_path / "a" / f"bad{i}.png").write_bytes(b"")
        lines = fault_lines(read_images, tmp_path)
        assert len(lines) == 22
        assert lines[-1].strip() == "... and 10 more"

    @pytest.mark.parametrize("count", [0, 1])
    def test_needs_two_classes(self, tmp_path, count):
        fill(tmp_path, dict.fromkeys(["only"][:count], 2))
        assert any("two classes" in line for line in fault_lines(read_images, tmp_path))

    def test_says_what_a_source_may_be(self, tmp_path):
        assert "does not exist" in fault_lines(read_images, tmp_path / "gone")[0]
        (tmp_path / "x.txt").write_text("")
        assert "neither a folder nor a .csv" in fault_lines(read_images, tmp_path / "x.txt")[0]

    def test_unicode_names_are_composed(self, tmp_path):
        fill(tmp_path, {unicodedata.normalize("NFD", "Äpfel"): 1, "Birnen": 1})
        found = read_images(tmp_path)
        assert found.classes == ("Birnen", unicodedata.normalize("NFC", "Äpfel"))
        assert found.names[1] == unicodedata.normalize("NFC", "Äpfel/00.png")

    @pytest.mark.parametrize("twin", [unicodedata.normalize("NFD", "Äpfel"), "äpfel"])
    def test_look_alike_classes_are_refused(self, tmp_path, twin):
        fill(tmp_path, {unicodedata.normalize("NFC", "Äpfel"): 1, "b": 1})
        fill(tmp_path, {twin: 1})
        assert any("differ only in case or unicode form" in line for line in fault_lines(read_images, tmp_path))


class TestClassOrder:
    def test_is_kept(self, tmp_path):
        found = read_images(fill(tmp_path, {"a": 1, "b": 2, "c": 1}), classes=["c", "a", "b"])
        assert found.classes == ("c", "a", "b")
        assert [found.classes[item.label] for item in found.items] == [name.split("/")[0] for name in found.names]
        assert found.counts() == {"c": 1, "a": 1, "b": 2}

    def test_faults_name_the_near_miss(self, tmp_path):
        lines = fault_lines(read_images, fill(tmp_path, {"apple": 1, "pear": 1}), classes=["aple", "pear", "pear"])
        text = "\n".join(lines)
        assert "'apple' is not among the classes (did you mean 'aple'?)" in text
        assert "class 'aple' has no images (did you mean 'apple'?)" in text
        assert "class 'pear' is listed 2 times" in text

    def test_a_test_set_may_lack_classes(self, tmp_path):
        found = read_images(fill(tmp_path, {"b": 2}), classes=["a", "b"], complete=False)
        assert found.counts() == {"a": 0, "b": 2}

    def test_a_test_set_may_not_be_empty(self, tmp_path):
        assert fault_lines(read_images, tmp_path, classes=["a", "b"], complete=False)[1:] == ["  holds no images"]

    def test_applies_to_the_sample_task(self):
        order = [str(d) for d in reversed(range(10))]
        found = read_images("digits", classes=order)
        assert found.classes == tuple(order)
        assert found.counts()["9"] == 180


class TestCsv:
    def write(self, root, text):
        (root / "list.csv").write_text(text, encoding="utf-8")
        return root / "list.csv"

    def test_paths_are_relative_to_it(self, tmp_path):
        fill(tmp_path / "pictures", {"x": 2})
        source = self.write(tmp_path, "path,label\npictures/x/00.png,one\npictures/x/01.png, two \n")
        found = read_images(source)
        assert found.classes == ("one", "two")
        assert found.names == ("pictures/x/00.png", "pictures/x/01.png")

    def test_a_byte_order_mark_and_more_columns_do_no_harm(self, tmp_path):
        fill(tmp_path, {"x": 2})
        source = self.write(tmp_path, "\ufefflabel,note,path\none,n,x/00.png\ntwo,n,x/01.png\n")
        assert read_images(source).classes == ("one", "two")

    @pytest.mark.parametrize("line", ["x\\00.png,one", unicodedata.normalize("NFD", "é.png") + ",one"])
    def test_other_slashes_and_unicode_forms_find_their_file(self, tmp_path, line):
        fill(tmp_path, {"x": 2})
        write(tmp_path / unicodedata.normalize("NFC", "é.png"), picture(5))
        found = read_images(self.write(tmp_path, f"Path,LABEL\n{line}\nx/01.png,two\n"))
        assert found.names[0] in ("x/00.png", unicodedata.normalize("NFC", "é.png"))

    def test_a_column_twice_is_told(self, tmp_path):
        fill(tmp_path, {"x": 2})
        assert "path,label" in fault_lines(read_images, self.write(tmp_path, "path,label,path\nx/00.png,a,b\n"))[0]

    def test_all_faulty_lines_are_named(self, tmp_path):
        fill(tmp_path, {"x": 2})
        rows = "path,label\nx/00.png,one\nx/00.png,two\n./x/01.png,\ngone.png,two\nx/../x/00.png,one\n"
        text = "\n".join(fault_lines(read_images, self.write(tmp_path, rows)))
        assert "line 3: x/00.png is already listed on line 2" in text
        assert "line 4: needs both a path and a label" in text
        assert "line 6: x/../x/00.png is already listed on line 2" in text
        assert "gone.png: cannot be read: No such file or directory" in text

    def test_names_that_no_file_can_have_are_named(self, tmp_path):
        fill(tmp_path, {"x": 1})
        rows = f"path,label\nx/00.png,one\nx/\0.png,two\n{'y' * 5000}.png,two\n"
        lines = fault_lines(read_images, self.write(tmp_path, rows))
        assert ["cannot be read" in line for line in lines[1:]] == [True, True]

    def test_needs_to_be_a_table(self, tmp_path):
        lines = fault_lines(read_images, self.write(tmp_path, f"path,label\n{'y' * 200_000},one\n"))
        assert "list.csv: line 2: field larger than field limit" in lines[0]

    def test_needs_its_header(self, tmp_path):
        assert "header 'path,label'" in fault_lines(read_images, self.write(tmp_path, "file,class\na,b\n"))[0]

    def test_needs_to_be_text(self, tmp_path):
        (tmp_path / "x.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
        assert "not UTF-8" in fault_lines(read_images, tmp_path / "x.csv")[0]


class TestDigits:
    def test_is_the_whole_task_scaled_to_bytes(self):
        found = read_images("digits")
        assert len(found) == 1797
        assert found.classes == tuple("0123456789")
        pixels = np.stack(found.rgb)
        assert (pixels.shape, pixels.dtype) == ((1797, 8, 8, 3), np.uint8)
        assert np.unique(pixels).tolist() == [round(level * 255 / 16) for level in range(17)]
        assert (pixels[..., 0] == pixels[..., 2]).all()

    def test_a_folder_of_that_name_is_not_taken_for_it(self, tmp_path, monkeypatch):
        fill(tmp_path / "digits", {"a": 1, "b": 1})
        monkeypatch.chdir(tmp_path)
        assert len(read_images("digits")) == 1797
        assert len(read_images("./digits")) == 2

    def test_has_no_near_duplicates_across_its_split(self):
        support, test = k_shot_split(read_images("digits"), 5, 0)
        assert not exact_duplicates(support, test)
        assert not near_duplicates(support, test)


class TestMemory:
    """A folder of camera photos need not fit into memory."""

    def test_pixels_beyond_the_budget_are_decoded_when_asked_for(self, tmp_path, monkeypatch):
        fill(tmp_path, {"a": 3, "b": 3})
        resident = read_images(tmp_path)
        monkeypatch.setattr(images_module, "_RESIDENT_BYTES", 2 * 24 * 24 * 3)
        lazy = read_images(tmp_path)
        assert sum(item.pixels is not None for item in lazy.items) == 2
        for a, b in zip(resident.rgb, lazy.rgb, strict=True):
            np.testing.assert_array_equal(a, b)
        assert content_hash(resident) == content_hash(lazy)

    def test_a_file_changed_meanwhile_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(images_module, "_RESIDENT_BYTES", 0)
        found = read_images(fill(tmp_path, {"a": 1, "b": 1}))
        write(tmp_path / "a" / "00.png", picture(99))
        with pytest.raises(DataError, match="changed or removed"):
            _ = found.rgb[0]


class TestSet:
    def test_subset_keeps_classes_and_order(self):
        found = in_memory({"a": 3, "b": 3}).subset([4, 0])
        assert (found.names, found.classes) == (("b/1", "a/0"), ("a", "b"))

    def test_pixels_can_be_sliced(self):
        found = in_memory({"a": 3, "b": 3})
        assert len(found.rgb[2:5]) == 3
        np.testing.assert_array_equal(found.rgb[2:5][0], found.rgb[2])

    def test_hash_depends_on_classes_names_labels_and_bytes(self):
        a = in_memory({"a": 2, "b": 2})
        assert content_hash(a) == content_hash(in_memory({"a": 2, "b": 2}))
        others = [a.subset([0, 1, 2]), ImageSet(("a", "c"), a.items), ImageSet(a.classes, a.items[::-1])]
        assert len({content_hash(x) for x in (a, *others)}) == 4


class TestDuplicates:
    def sets(self, *others):
        one = ImageSet(("a", "b"), (Item("one", 0, "", picture(1, 96)), Item("two", 1, "", picture(2, 96))))
        return one, ImageSet(("a", "b"), tuple(Item(str(i), 0, "", rgb) for i, rgb in enumerate(others)))

    def test_exact_ones_are_equal_pixels_whatever_the_file(self, tmp_path):
        fill(tmp_path, {"a": 2, "b": 1})
        Image.open(tmp_path / "a" / "01.png").save(tmp_path / "b" / "copy.bmp")
        found = read_images(tmp_path)
        pairs = exact_duplicates(found.subset([0, 1]), found.subset([2, 3]))
        assert pairs == [(1, 1)]

    @pytest.mark.parametrize("change", ["jpeg", "half", "double", "darker"])
    def test_near_ones_survive_what_happens_to_copies(self, change):
        rgb = picture(2, 96)
        copy = {
            "jpeg": lambda: np.asarray(Image.open(io.BytesIO(encoded(rgb, "JPEG", quality=60)))),
            "half": lambda: np.asarray(Image.fromarray(rgb).resize((48, 48), Image.Resampling.LANCZOS)),
            "double": lambda: np.asarray(Image.fromarray(rgb).resize((192, 192), Image.Resampling.BICUBIC)),
            "darker": lambda: (rgb * 0.98).astype(np.uint8),
        }[change]()
        one, other = self.sets(picture(3, 96), copy)
        assert exact_duplicates(one, other) == []
        assert [(i, j) for i, j, _ in near_duplicates(one, other)] == [(1, 1)]

    def test_other_pictures_are_no_duplicates(self):
        one, other = self.sets(*(picture(seed, 96) for seed in range(10, 60)), np.zeros((96, 96, 3), np.uint8))
        assert near_duplicates(one, other) == []

    def test_an_empty_set_has_none(self):
        one, none = self.sets()
        assert exact_duplicates(one, none) == near_duplicates(one, none) == near_duplicates(none, one) == []

    def test_plain_pictures_of_other_colours_are_no_duplicates(self):
        red, green = (np.full((32, 32, 3), colour, np.uint8) for colour in ([200, 0, 0], [0, 200, 0]))
        a, b = (ImageSet(("a", "b"), (Item("x", 0, "", rgb),)) for rgb in (red, green))
        assert near_duplicates(a, b) == []
        assert len(near_duplicates(a, a)) == 1
