import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbft.data.split import apply_split_file, check_leaks, find_leaks, hash_videos, read_split_file, split_examples
from rbft.errors import ConfigError, DataError, LeakError
from rbft.records import Example

HALVES = {"train": 0.5, "test": 0.5}


def _examples(**num_by_label: int) -> list[Example]:
    return [Example(f"{label}{n}", f"{label}{n}.mp4", label) for label, num in num_by_label.items() for n in range(num)]


def _sizes(examples: list[Example]) -> Counter:
    return Counter((example.label, example.split) for example in examples)


_fractions = (
    st.tuples(*[st.integers(0, 100)] * 3)
    .filter(any)
    .map(lambda parts: {name: part / sum(parts) for name, part in zip(("train", "validation", "test"), parts, strict=True)})
)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), _fractions, st.integers(0, 9), st.randoms())
def test_a_split_is_whole_stratified_and_independent_of_order(num_a, num_b, fractions, seed, random):
    examples = _examples(a=num_a, b=num_b)
    split = split_examples(examples, fractions, seed)
    assert [replace(example, split=None) for example in split] == examples
    used = [name for name, fraction in fractions.items() if fraction > 0]
    for label, num in (("a", num_a), ("b", num_b)):
        sizes = {name: _sizes(split)[label, name] for name in fractions}
        assert sum(sizes.values()) == num
        assert all(sizes[name] == 0 for name in fractions if name not in used)
        assert sum(size > 0 for size in sizes.values()) == min(num, len(used))
        if all(fractions[name] * num >= 1 for name in used):
            assert all(abs(sizes[name] - fractions[name] * num) < 1 + 1e-6 for name in used)
    shuffled = random.sample(examples, len(examples))
    place = {example.id: example.split for example in split}
    assert {example.id: example.split for example in split_examples(shuffled, fractions, seed)} == place


@settings(deadline=None)
@given(st.integers(5, 80), st.integers(1, 10), st.integers(0, 9))
def test_adding_videos_moves_few_of_the_old_ones(num, num_new, seed):
    fractions = {"train": 0.8, "test": 0.2}
    before = {example.id: example.split for example in split_examples(_examples(a=num), fractions, seed)}
    after = {example.id: example.split for example in split_examples(_examples(a=num + num_new), fractions, seed)}
    # Only the border between the two splits moves, and by no more ranks than there are new videos.
    assert sum(after[id] != split for id, split in before.items()) <= num_new


@pytest.mark.parametrize(
    ("num", "fractions", "sizes"),
    [
        (10, {"train": 0.8, "test": 0.2}, {"train": 8, "test": 2}),
        (378, {"train": 0.8, "test": 0.2}, {"train": 302, "test": 76}),
        (645, {"train": 0.8, "test": 0.2}, {"train": 516, "test": 129}),
        (7, {"train": 0.6, "validation": 0.2, "test": 0.2}, {"train": 4, "validation": 2, "test": 1}),
        (100, {"train": 0.57, "test": 0.43}, {"train": 57, "test": 43}),
        (3, {"train": 0.98, "validation": 0.01, "test": 0.01}, {"train": 1, "validation": 1, "test": 1}),
        (2, {"train": 0.8, "validation": 0.1, "test": 0.1}, {"train": 1, "test": 1}),
        (2, {"train": 0.1, "validation": 0.8, "test": 0.1}, {"train": 1, "test": 1}),
        (5, {"test": 1.0}, {"test": 5}),
    ],
)
def test_sizes_follow_the_largest_remainder_and_leave_no_split_empty(num, fractions, sizes):
    assert Counter(example.split for example in split_examples(_examples(a=num), fractions, 0)) == sizes


def test_the_split_of_a_seed_is_the_same_for_ever():
    tested = {
        seed: [
            example.id for example in split_examples(_examples(a=8, b=4), {"train": 0.75, "test": 0.25}, seed) if example.split == "test"
        ]
        for seed in (0, 1)
    }
    assert tested == {0: ["a2", "a6", "b2"], 1: ["a3", "a4", "b2"]}


def test_unlabelled_videos_go_to_train():
    split = split_examples([*_examples(a=4), Example("u", "u.mp4")], HALVES, 0)
    assert split[-1].split == "train"
    assert Counter(example.split for example in split[:-1]) == {"train": 2, "test": 2}


def test_a_class_with_one_video_cannot_be_split():
    with pytest.raises(DataError, match=r"class 'b' has one video \('b0'\) and cannot be split; add videos"):
        split_examples(_examples(a=4, b=1), HALVES, 0)


@pytest.mark.parametrize(
    "fractions", [{}, {"train": 0.8}, {"train": 1.2, "test": -0.2}, {"train": float("nan"), "test": 1.0}, {"dev": 1.0}]
)
def test_fractions_that_make_no_whole_are_refused(fractions):
    with pytest.raises(ConfigError, match="fractions: "):
        split_examples(_examples(a=4), fractions, 0)


def _file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.json", json.dumps({"train": ["a0", "-b"], "valid": ["7"], "test": ["x y"]})),
        ("s.csv", b"\xef\xbb\xbfid,split\r\na0,train\r\n-b, Train\r\n7,val\r\nx y,test\r\n"),
        ("s.txt", "a0 train\n-b\ttrain\n\n7,dev\nx y test\n"),
        ("s.tsv", "video\tsubset\na0\ttrain\n-b\ttrain\n7\tvalidation\nx y\ttest\n"),
    ],
)
def test_a_split_file_is_read_in_every_layout(tmp_path, name, content):
    assert read_split_file(_file(tmp_path / name, content)) == {"a0": "train", "-b": "train", "7": "validation", "x y": "test"}


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("s.json", '{"train": ["a"], "test": ["a"]}', LeakError, "'test': id 'a' is in train and in test"),
        ("s.csv", "a,train\na,test\n", LeakError, "line 2: id 'a' is in train and in test"),
        ("s.json", '{"train": "a"}', DataError, "must be an object of lists"),
        ("s.json", "{", DataError, "line 1: is not JSON"),
        ("s.json", '{"tain": ["a"]}', DataError, "split 'tain' .*did you mean 'train'"),
        ("s.csv", "a,train\nb,b,b\n", DataError, "line 2: must be `id,split`"),
        ("s.txt", "a\n", DataError, "line 1: must be `id,split`"),
        ("s.txt", "", DataError, "names no id"),
        ("s.txt", b"\xff\xfe", DataError, "is not UTF-8"),
    ],
)
def test_a_bad_split_file_is_one_clear_line(tmp_path, name, content, error, says):
    with pytest.raises(error, match=says):
        read_split_file(_file(tmp_path / name, content))


def test_a_missing_split_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"s\.json: cannot be opened"):
        read_split_file(tmp_path / "s.json")


def test_a_published_split_is_applied_and_leaves_out_what_it_does_not_name(tmp_path):
    path = _file(tmp_path / "s.json", '{"train": ["a0.mp4", "a2"], "test": ["b0"]}')
    applied = apply_split_file(_examples(a=3, b=2), path)
    assert [(example.id, example.split) for example in applied] == [("a0", "train"), ("a2", "train"), ("b0", "test")]


def test_a_split_file_with_unknown_or_twice_written_ids_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"1 id\(s\) are not in the data \('zz'\)"):
        apply_split_file(_examples(a=3), _file(tmp_path / "s.txt", "a0,train\nzz,test\n"))
    with pytest.raises(LeakError, match="'a0' is in train and in test"):
        apply_split_file(_examples(a=3), _file(tmp_path / "s.txt", "a0,train\na0.mp4,test\n"))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(["train", "test", None]), st.sampled_from("hjk")))
)
def test_a_leak_is_found_exactly_where_one_is(rows):
    examples = [Example(id, uri, split=split, sha256=sha256) for id, uri, split, sha256 in rows]
    tested, learned = ([example for example in examples if example.split == split] for split in ("test", "train"))
    same = any(a.id == b.id or a.uri == b.uri or a.sha256 == b.sha256 for a in tested for b in learned)
    assert bool(find_leaks(examples)) == same
    if same:
        with pytest.raises(LeakError, match="train and test"):
            check_leaks(examples)
    else:
        check_leaks(examples)


def test_one_leak_is_told_once_by_its_plainest_reason():
    twice = [Example("a", "a.mp4", split=split, sha256="0") for split in ("test", "train")]
    assert [str(leak) for leak in find_leaks(twice)] == ["'a': the same id in train and test; leave the video in one split"]


def test_the_same_bytes_under_two_names_are_a_leak_once_hashed(tmp_path):
    for name, content in (("a.mp4", b"one" * 1_000_000), ("b.mp4", b"one" * 1_000_000), ("c.mp4", b"")):
        _file(tmp_path / name, content)
    examples = [
        Example(name, f"{name}.mp4", split=split) for name, split in (("a", "train"), ("b", "test"), ("c", "test"), ("gone", "test"))
    ]
    check_leaks(examples)
    hashed = hash_videos(examples, tmp_path)
    digest = hashlib.sha256(b"one" * 1_000_000).hexdigest()
    assert [example.sha256 for example in hashed] == [digest, digest, hashlib.sha256().hexdigest(), None]
    with pytest.raises(LeakError, match="'a', 'b': the same bytes in train and test"):
        check_leaks(hashed)


def test_a_known_hash_is_kept_and_an_unreadable_file_is_logged_not_raised(tmp_path, caplog):
    examples = [Example("a", "a.mp4", sha256="known"), Example("dir", "."), Example("odd", "ftp://host/a.mp4")]
    assert [example.sha256 for example in hash_videos(examples, tmp_path)] == ["known", None, None]
    assert "count=2 first_ids=['dir', 'odd']" in caplog.text
