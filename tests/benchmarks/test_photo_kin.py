"""benchmarks/photo_kin.py on a WordNet of five nouns, in the format of its files (wndb(5WN))."""

import pytest

NOUNS = (  # offset, words, what it is a kind of
    ("00000001", ["animal"], None),
    ("00000002", ["cat", "true_cat"], "00000001"),
    ("00000003", ["lion", "king_of_beasts"], "00000002"),
    ("00000004", ["sea_lion"], "00000001"),
    ("00000005", ["cat", "gossip"], None),
)


@pytest.fixture
def nouns(script, tmp_path):
    kin = script("photo_kin")
    data, index = "  1 a licence\n", "  1 a licence\n"
    for offset, words, above in NOUNS:
        pointers = f"001 @ {above} n 0000" if above else "000"
        data += f"{offset} 05 n {len(words):02x} {' '.join(f'{word} 0' for word in words)} {pointers} | a meaning\n"
    for word in dict.fromkeys(word for _, words, _ in NOUNS for word in words):
        senses = [offset for offset, words, _ in NOUNS if word in words]
        index += f"{word} n {len(senses)} 1 @ {len(senses)} 0 {' '.join(senses)}\n"
    (tmp_path / "data.noun").write_text(data)
    (tmp_path / "index.noun").write_text(index)
    return kin, kin.Nouns(tmp_path)


def test_kin_by_id_by_hypernyms_and_by_name(nouns):
    kin, known = nouns
    pairs = {
        ("n00000003", "lion"): "is",
        ("lion", "cat"): "is a kind of",
        ("animal", "n00000003"): "contains",
        ("sea_lion", "n00000003"): "has the word",
        ("lion", "sea_lion"): "",
    }
    assert {pair: kin.kinship(known, *pair, 1) for pair in pairs} == pairs


def test_other_senses_count_only_where_asked_for(nouns):
    kin, known = nouns
    assert kin.kinship(known, "gossip", "cat", 1) == ""
    assert kin.kinship(known, "gossip", "cat", None) == "is"
