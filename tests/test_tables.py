"""Tables as they come: compressed, with odd headers, cut short, and with cells nobody may quote."""

import sys
from pathlib import Path

import pytest

from data_prep.tables import check_unique, find_table, need_table, number_in, read_rows
from tests.source_folders import truncate, write_table

ENDINGS = ("csv", "csv.gz", "xlsx")
HEADER = ["ID", "View Position", "Age"]


def table(folder: Path, lines: list[list], ending: str = "csv") -> Path:
    if ending == "xlsx":
        pytest.importorskip("openpyxl", reason="spreadsheets need openpyxl")
    return write_table(folder / f"table.{ending}", [HEADER, *lines])


@pytest.mark.parametrize("ending", ENDINGS)
def test_read_rows_takes_columns_by_name_from_every_kind_of_table(tmp_path, ending):
    path = table(tmp_path, [[7, " PA ", 50], [8, "", 60]], ending)
    assert list(read_rows(path, ("View Position", "ID"))) == [
        (2, {"View Position": "PA", "ID": "7"}),
        (3, {"View Position": "", "ID": "8"}),
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_read_rows_shows_empty_rows_between_others_only(tmp_path, ending):
    path = table(tmp_path, [[7, "PA", 50], ["", "", ""], [8, "AP", 60], ["", "", ""]], ending)
    rows = list(read_rows(path, ("ID",)))
    assert rows == [(2, {"ID": "7"}), (3, {"ID": ""}), (4, {"ID": "8"})]


def test_read_rows_passes_over_commas_at_the_end(tmp_path):
    (tmp_path / "a.csv").write_text("ID,Box [x,y],,\n7,1.5,2\n8,3,4,,,\n")
    rows = list(read_rows(tmp_path / "a.csv", ("ID", "Box [x", "y]")))
    assert rows == [(2, {"ID": "7", "Box [x": "1.5", "y]": "2"}),
                    (3, {"ID": "8", "Box [x": "3", "y]": "4"})]  # fmt: skip


def test_read_rows_takes_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfID,View\r\n7,PA\r\n")
    assert list(read_rows(tmp_path / "a.csv", ("ID",))) == [(2, {"ID": "7"})]


def test_read_rows_takes_whole_floats_of_a_spreadsheet_for_integers(tmp_path):
    path = table(tmp_path, [[7.0, "PA", 0.5]], "xlsx")
    assert list(read_rows(path, ("ID", "Age"))) == [(2, {"ID": "7", "Age": "0.5"})]


def test_read_rows_names_a_renamed_column(tmp_path):
    path = table(tmp_path, [[7, "PA", 50]])
    expected = r"table.csv: no column 'ViewPosition' in its first row \(is it 'View Position'\?\)"
    with pytest.raises(ValueError, match=expected):
        list(read_rows(path, ("ViewPosition",)))


def test_read_rows_never_quotes_cells_where_the_header_is_missing(tmp_path):
    (tmp_path / "a.csv").write_text("file1.png,Jane,52\n")
    for column in ("file", "name"):
        with pytest.raises(ValueError) as caught:
            list(read_rows(tmp_path / "a.csv", (column,)))
        assert str(caught.value) == f"a.csv: no column {column!r} in its first row"


def test_read_rows_refuses_a_doubled_column(tmp_path):
    path = write_table(tmp_path / "a.csv", [["ID", "ID"], [1, 2]])
    with pytest.raises(ValueError, match="the column 'ID' occurs 2 times"):
        list(read_rows(path, ("ID",)))


@pytest.mark.parametrize(("line", "count"), [("8,AP", 2), ("8,AP,60,x", 4)], ids=["few", "many"])
def test_read_rows_names_the_row_of_a_wrong_length(tmp_path, line, count):
    (tmp_path / "a.csv").write_text(f"ID,View,Age\n7,PA,50\n{line}\n")
    with pytest.raises(ValueError, match=rf"a.csv, row 3: expected 3 cells, got {count}"):
        list(read_rows(tmp_path / "a.csv", ("ID",)))


def test_read_rows_refuses_merged_cells(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="spreadsheets need openpyxl")
    path = table(tmp_path, [[7, "PA", 50], [8, "AP", 60]], "xlsx")
    book = openpyxl.load_workbook(path)
    book.active.merge_cells("B2:B3")
    book.save(path)
    with pytest.raises(ValueError, match=r"cells B2:B3 are merged \(1 places in all\); unmerge"):
        list(read_rows(path, ("ID",)))


def test_read_rows_refuses_truncated_files(tmp_path):
    packed = table(tmp_path, [[n, "PA", 50] for n in range(500)], "csv.gz")
    truncate(packed)
    with pytest.raises(ValueError, match="table.csv.gz: truncated, or not compressed by gzip"):
        list(read_rows(packed, ("ID",)))
    sheet = table(tmp_path, [[7, "PA", 50]], "xlsx")
    truncate(sheet)
    with pytest.raises(ValueError, match="table.xlsx: truncated, or not a spreadsheet"):
        list(read_rows(sheet, ("ID",)))


def test_read_rows_refuses_what_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes("ID,Name\n7,Müller\n".encode("latin-1"))
    with pytest.raises(ValueError, match="a.csv: expected UTF-8 text"):
        list(read_rows(tmp_path / "a.csv", ("ID",)))
    (tmp_path / "b.csv").write_text('ID\n"7' + "x" * 200_000)
    with pytest.raises(ValueError, match="b.csv: not a CSV table: field larger"):
        list(read_rows(tmp_path / "b.csv", ("ID",)))


def test_read_rows_refuses_other_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="expected a table ending in .csv, .csv.gz or .xlsx"):
        list(read_rows(tmp_path / "a.parquet", ("ID",)))
    with pytest.raises(FileNotFoundError, match="no table at .*absent.csv"):
        list(read_rows(tmp_path / "absent.csv", ("ID",)))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="no column 'ID'"):
        list(read_rows(tmp_path / "empty.csv", ("ID",)))


def test_read_rows_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ImportError, match=r"a.xlsx needs openpyxl: pip install openpyxl"):
        list(read_rows(tmp_path / "a.xlsx", ("ID",)))


def test_find_table_wants_one(tmp_path):
    assert find_table(tmp_path, "split.csv", "split.csv.gz") is None
    with pytest.raises(FileNotFoundError, match="no table split.csv or split.csv.gz in"):
        need_table(tmp_path, "split.csv", "split.csv.gz")
    (tmp_path / "split.csv").write_text("")
    assert need_table(tmp_path, "split.csv", "split.csv.gz") == tmp_path / "split.csv"
    (tmp_path / "split.csv.gz").write_text("")
    with pytest.raises(ValueError, match="expected one table of .*, got split.csv, split.csv.gz"):
        find_table(tmp_path, "split.csv", "split.csv.gz")


def test_check_unique_names_both_rows_and_not_the_id():
    rows = [(2, {"ID": "4711"}), (3, {"ID": ""}), (4, {"ID": ""}), (5, {"ID": "4711"})]
    assert list(check_unique(rows[:3], Path("a.csv"), "ID")) == rows[:3]
    with pytest.raises(ValueError, match="a.csv, row 5: the 'ID' of row 2 once more") as caught:
        list(check_unique(rows, Path("a.csv"), "ID"))
    assert "4711" not in str(caught.value)


def test_number_in_names_the_place():
    assert number_in(Path("a.csv"), 7, "x", "1.5") == 1.5
    for cell in ("", "Doe", "nan", "inf"):
        with pytest.raises(ValueError, match="^a.csv, row 7: 'x' is no number$"):
            number_in(Path("a.csv"), 7, "x", cell)
