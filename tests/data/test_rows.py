"""Rows: what each kind of file gives, and what its mistakes say."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from reallm.data.row_errors import RowErrors
from reallm.data.row_sources import check_source
from reallm.data.rows import Row, describe, iter_rows, read_rows
from reallm.errors import DataError

GOOD = [{"prompt": "a", "answer": "b"}, {"prompt": "c\u2028d", "answer": "é"}]


def values(source: Any) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(source)]


def message(source: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="install pyarrow (reallm-core[parquet]) to test reading parquet")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# --- formats --------------------------------------------------------------------------------------------------------


def test_jsonl_gives_one_row_a_line_cut_at_newlines_only(tmp_path: Path) -> None:
    assert values(file(tmp_path, "a.jsonl", lines(*GOOD))) == GOOD


def test_a_compressed_file_reads_as_the_file_itself(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl.gz", gzip.compress(lines(*GOOD).encode()))
    assert values(path) == GOOD
    assert [row.place for row in read_rows(path)] == [f"{path}:1", f"{path}:2"]


def test_json_gives_the_elements_of_a_list_with_the_lines_they_start_on(tmp_path: Path) -> None:
    path = file(tmp_path, "a.json", json.dumps(GOOD, indent=2))
    assert values(path) == GOOD
    assert [row.place for row in read_rows(path)] == [f"{path}:2", f"{path}:6"]


def test_parquet_gives_the_rows_of_the_table_where_null_is_not_there(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", [{"prompt": "a", "messages": None}, {"prompt": "b", "messages": ["m"]}]
    )
    rows = read_rows(path)
    assert [row.text("prompt") for row in rows] == ["a", "b"]
    assert ["messages" in row for row in rows] == [False, True]
    assert rows[1].place == f"{path}, row 2"


def test_the_extension_may_be_in_capitals(tmp_path: Path) -> None:
    assert values(file(tmp_path, "A.JSONL", lines(*GOOD))) == GOOD


def test_json_on_one_line_has_a_name_for_each_element(tmp_path: Path) -> None:
    path = file(tmp_path, "a.json", json.dumps(GOOD))
    rows = read_rows(path)
    assert [row.id for row in rows] == ["a.json:1", *(f"a.json:1#{nth}" for nth in range(2, len(GOOD) + 1))]
    mixed = read_rows(file(tmp_path, "b.json", '[{"a": 1}, {"a": 2},\n{"a": 3}, {"a": 4}]'))
    assert [row.id for row in mixed] == ["b.json:1", "b.json:1#2", "b.json:2", "b.json:2#2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_and_crlf_are_no_part_of_the_data(tmp_path: Path, name: str) -> None:
    text = lines(*GOOD) if name == "a.jsonl" else json.dumps(GOOD, indent=1)
    assert values(file(tmp_path, name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())) == GOOD


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", "\n" + lines(GOOD[0]) + "  \t\n\r\n" + lines(GOOD[1]) + "\n")
    assert [row.place for row in read_rows(path)] == [f"{path}:2", f"{path}:5"]


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(tmp_path, "a.jsonl", lines(*GOOD))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values("~/a.jsonl") == GOOD


# --- files that cannot be read --------------------------------------------------------------------------------------


def test_a_missing_file_names_its_neighbour_or_where_it_was_looked_for(tmp_path: Path) -> None:
    file(tmp_path, "train.jsonl", lines(*GOOD))
    assert message(tmp_path / "trian.jsonl").endswith("trian.jsonl: no such file; did you mean 'train.jsonl'?")
    assert message(tmp_path / "no" / "x.jsonl").endswith(f"no such file (looked in {tmp_path / 'no'})")


def test_an_unknown_extension_says_what_is_read(tmp_path: Path) -> None:
    assert message(file(tmp_path, "a.xlsx", "a,b")) == (
        f"{tmp_path}/a.xlsx: unknown extension '.xlsx', wanted .jsonl, .json, .csv, .tsv (also with .gz or .zst), "
        ".parquet, .arrow, or a function as module:function"
    )
    assert "unknown extension '.gz'" in message(file(tmp_path, "a.parquet.gz", b""))


def test_no_path_at_all() -> None:
    assert message("") == "no data file is given: the path is empty"


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    path = file(tmp_path, name, content)
    assert message(path) == f"{path}: has no rows"


def test_an_empty_list_and_an_empty_table_are_errors(tmp_path: Path) -> None:
    assert message(file(tmp_path, "a.json", "[]")).endswith("a.json: has no rows")
    assert message(list).endswith("has no rows")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_not_utf8_names_the_line_and_the_byte(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, name, '\n"é"'.encode("latin-1"))
    assert message(path) == f"{path}:2: found the byte 0xe9 at column 2, wanted UTF-8 text; convert the file to UTF-8"
    assert "0xff" in message(file(tmp_path, name, lines(*GOOD).encode("utf-16")))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1}\n{"a": }\n', ":2: invalid JSON: Expecting value at column 7"),
        ('{"a": 1} {"a": 2}\n', ":1: invalid JSON: Extra data at column 10"),
        ("[" * 100_000 + "\n", ":1: invalid JSON: it is nested too deeply"),
        (f'{{"a": {"9" * 5000}}}\n', ":1: invalid JSON: Exceeds the limit"),
        ("prompt,answer\n", ":1: invalid JSON: Expecting value at column 1"),
    ],
)
def test_invalid_json_lines_name_line_and_column(tmp_path: Path, content: str, problem: str) -> None:
    path = file(tmp_path, "a.jsonl", content)
    assert message(path).startswith(f"{path}{problem}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[{"a": 1},\n{"a": }]', ":2: invalid JSON: Expecting value at column 7"),
        ('[{"a": 1}\n', ":2: invalid JSON: Expecting ',' delimiter at column 1"),
        ("[{}]\n[]", ":2: invalid JSON: Extra data at column 1"),
        ('{"a": [{}], "b": [{}]}', ": holds the lists 'a', 'b'; wanted one list of rows: [{...}, ...]"),
        ("[" * 100_000, ":1: invalid JSON: it is nested too deeply"),
    ],
)
def test_a_json_file_that_is_no_list_of_objects(tmp_path: Path, content: str, problem: str) -> None:
    path = file(tmp_path, "a.json", content)
    assert message(path) == f"{path}{problem}"


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    whole = gzip.compress(lines(*GOOD).encode())
    assert "cannot be read as a gzip file" in message(file(tmp_path, "a.jsonl.gz", lines(*GOOD)))
    path = file(tmp_path, "b.jsonl", whole)
    assert message(path) == f"{path}: is not text; its name should end in .gz"
    path = file(tmp_path, "c.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 538090408\n")
    assert message(path) == (
        f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` in {tmp_path}"
    )
    assert "cannot be read as a gzip file" in message(file(tmp_path, "a.jsonl.gz", whole[:-9]))
    assert "cannot be read as a gzip file" in message(file(tmp_path, "a.jsonl.gz", whole[:12] + b"xxxx" + whole[16:]))
    pytest.importorskip("pyarrow", reason="install pyarrow (reallm-core[parquet]) to test reading parquet")
    assert "cannot be read as a parquet file" in message(file(tmp_path, "a.parquet", "PAR1 or not"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = file(tmp_path, "a.parquet", b"")
    assert message(path) == f"{path}: reading parquet needs pyarrow: pip install 'reallm-core[parquet]'"


def test_a_file_that_the_system_does_not_let_us_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, "a.jsonl", lines(*GOOD))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert message(path) == f"{path} cannot be read (Permission denied)"


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "found"), [(3, "a number (3)"), ("x", "text ('x')"), ([1], "a list of 1"), (None, "null"), (True, "true")]
)
def test_a_row_that_is_no_object(tmp_path: Path, row: Any, found: str) -> None:
    path = file(tmp_path, "a.jsonl", lines(GOOD[0], row))
    assert message(path) == f"{path}:2: found {found}, wanted an object such as {{...}}"
    assert f"found {found}, wanted an object" in message(file(tmp_path, "a.json", json.dumps([row])))


def test_a_required_key_is_checked_in_every_row(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines({"prompt": "x", "n": 1}, {"promt": "x"}))
    assert message(path, required={"prompt": str}) == (
        f"{path}:2: key 'prompt': found no such key (keys: 'promt'), wanted text"
    )
    assert message(path, required={"n": str}) == f"{path}:1: key 'n': found a number (1), wanted text (and 1 more row)"
    assert message(path, required={"n": (str, list)}).endswith("wanted text or a list (and 1 more row)")
    assert message(path, required={"prompt": int}) == (
        f"{path}:1: key 'prompt': found text ('x'), wanted a whole number (and 1 more row)"
    )


def test_the_first_wrong_row_is_named_with_how_many_more_are_wrong(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines({"n": 1}, 3, {"n": 2}, {"id": 1.5}, {"n": 3}, "x"))
    assert message(path) == f"{path}:2: found a number (3), wanted an object such as {{...}} (and 2 more rows)"


def test_rows_are_read_while_they_are_used(tmp_path: Path) -> None:
    found = iter_rows(file(tmp_path, "a.jsonl", lines({"n": 1}, 3)))
    assert next(found).values == {"n": 1}
    with pytest.raises(DataError, match="a.jsonl:2: found a number"):
        next(found)


def test_errors_of_wrong_rows_can_be_collected_and_the_others_used(tmp_path: Path) -> None:
    errors = RowErrors()
    rows = list(iter_rows(file(tmp_path, "a.jsonl", lines({"n": 1}, 3, {"n": 2})), errors=errors))
    assert [(row.index, row.values) for row in rows] == [(0, {"n": 1}), (2, {"n": 2})]
    errors.add(0, rows[0].error("is the first in the file"))
    assert len(errors) == 2
    with pytest.raises(DataError, match=r"a.jsonl:1: is the first in the file \(and 1 more row\)"):
        errors.check()


def test_true_is_not_a_number() -> None:
    row = Row("1", "here", {"n": True})
    with pytest.raises(DataError, match="here: key 'n': found true, wanted a whole number"):
        row.get("n", int)
    assert row.get("n", bool) is True
    assert row.get("n", (int, bool)) is True


def test_null_counts_as_missing() -> None:
    row = Row("1", "here", {"prompt": None})
    assert "prompt" not in row
    with pytest.raises(DataError, match="here: key 'prompt': found null, wanted text"):
        row.text("prompt")


def test_text_that_is_half_a_character(tmp_path: Path) -> None:
    row = read_rows(file(tmp_path, "a.jsonl", '{"prompt": "\\ud83d", "ok": "\\ud83d\\ude00"}\n'))[0]
    assert row.text("ok") == "😀"
    with pytest.raises(DataError, match=r"a.jsonl:1: key 'prompt': found half of a surrogate pair \('.ud83d'\)"):
        row.text("prompt")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("x", "key 'k': found text ('x'), wanted a list of texts"),
        ([], "key 'k': found an empty list, wanted a list of texts"),
        (["a", 3], "key 'k[1]': found a number (3), wanted text"),
        (["a", {"b": 1}], "key 'k[1]': found an object (keys: 'b'), wanted text"),
    ],
)
def test_lists_of_texts(value: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        Row("1", "here", {"k": value}).texts("k")
    assert str(caught.value) == f"here: {problem}"
    assert Row("1", "here", {"k": ["a", ""]}).texts("k") == ["a", ""]


def test_one_of_several_keys() -> None:
    row = Row("1", "here", {"mesages": []})
    row.need_one_of("prompt", "mesages")
    with pytest.raises(DataError, match=r"here: found no such key \(keys: 'mesages'\), wanted 'messages' or 'prompt'"):
        row.need_one_of("messages", "prompt")


def test_a_value_is_described_in_the_words_of_json_and_cut_short() -> None:
    assert describe("x" * 100) == f"text ('{'x' * 36}...)"
    assert describe({}) == "an empty object"
    assert describe({str(i): 0 for i in range(9)}).endswith("'7', ...)")
    assert describe(False) == "false"
    assert describe(b"x") == "a bytes (b'x')"


# --- ids ------------------------------------------------------------------------------------------------------------


def test_a_row_without_an_id_gets_one_from_its_position(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", "\n" + lines({"x": 1}, {"id": "mine"}, {"id": 7}, {"id": None}))
    assert [row.id for row in read_rows(path)] == ["a.jsonl:2", "mine", "7", "a.jsonl:5"]


def test_an_id_twice_names_both_rows(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", lines({"id": "7"}, {"x": 1}, {"id": 7}))
    assert message(path) == f"{path}:3: key 'id': '7' is already the id of {path}:1; ids must be unique"


@pytest.mark.parametrize("value", [1.5, True, [1], {"a": 1}])
def test_an_id_is_text_or_a_whole_number(tmp_path: Path, value: Any) -> None:
    told = message(file(tmp_path, "a.jsonl", lines({"id": value})))
    assert ":1: key 'id': found " in told
    assert told.endswith("wanted text or a whole number")


# --- functions ------------------------------------------------------------------------------------------------------

BUILDERS = """
from __future__ import annotations
from dataclasses import asdict, dataclass

@dataclass
class Pair:
    prompt: str
    answer: str

def rows():
    for i in range(2):
        yield asdict(Pair(f"p{i}", "a"))

def fails():
    yield {"prompt": "x"}
    raise RuntimeError("no network\\nat all")

def one():
    return {"prompt": "x"}

def bad_row():
    return [{"prompt": "x"}, "y"]

constant = 3
"""


@pytest.fixture
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return file(tmp_path, "my_builders.py", BUILDERS)


def test_a_function_builds_rows_named_by_module_or_by_file(builders: Path) -> None:
    expected = [{"prompt": "p0", "answer": "a"}, {"prompt": "p1", "answer": "a"}]
    assert values("my_builders:rows") == expected
    assert values(f"{builders}:rows") == expected
    assert values(lambda: iter(expected)) == expected
    rows = read_rows("my_builders:rows")
    assert rows[1].id == "my_builders:rows:2"
    assert rows[1].place == "my_builders:rows, row 2"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fails", "my_builders:fails: raised RuntimeError: no network at all"),
        ("one", "my_builders:one: returned a dict, wanted an iterable of mappings, one a row"),
        ("bad_row", "my_builders:bad_row, row 2: found text ('y'), wanted an object such as {...}"),
        ("row", "my_builders:row: 'my_builders' has no function 'row'; did you mean 'rows'?"),
        ("constant", "my_builders:constant: 'constant' of 'my_builders' is not a function"),
    ],
)
@pytest.mark.usefixtures("builders")
def test_mistakes_of_a_function_name_it(name: str, problem: str) -> None:
    assert message(f"my_builders:{name}") == problem


@pytest.mark.usefixtures("builders")
def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    assert message("no_such_module:rows") == (
        "no_such_module:rows: cannot import 'no_such_module': ModuleNotFoundError: No module named 'no_such_module'; "
        "a file is given as path/to/file.py:function"
    )
    assert "no such file; did you mean 'my_builders.py'?" in message(f"{tmp_path}/my_builder.py:rows")
    broken = file(tmp_path, "broken.py", "def f(:")
    assert f"{broken}:f: cannot import '{broken}': SyntaxError: " in message(f"{broken}:f")


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-has-this-name/rows.py"], ids=["long", "nobody"])
def test_a_function_in_what_is_no_path_at_all(path: str) -> None:
    assert message(f"{path}:load").startswith(f"the path {path[:97]}")
    assert message(f"{path}:load").endswith("); give another one")


def test_a_file_whose_name_looks_like_a_function_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file(tmp_path, "a:b", "")
    assert "unknown extension" in message("a:b")


def test_a_source_is_checked_without_reading_or_running_it(tmp_path: Path) -> None:
    check_source(file(tmp_path, "a.jsonl", "no JSON at all"))
    check_source("no_such_module:rows")
    check_source(file(tmp_path, "fatal.py", "raise SystemExit").as_posix() + ":rows")
    for source in (tmp_path / "none", tmp_path / "b.jsonl", file(tmp_path, "a.txt", ""), tmp_path / "b.py:rows"):
        with pytest.raises(DataError):
            check_source(str(source))
