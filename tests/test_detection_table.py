import csv
import io

from medsign_lite.deployment.detection_table import Row, print_rows, row_of, write_rows
from medsign_lite.deployment.key_detection import KeyDetection

MARKED = KeyDetection(
    keys=("ours",), matching=47, bits=48, compared=2, p_value=3.5e-13,
    false_positive_rate=1e-6, detected=True,
)  # fmt: skip
TIE = KeyDetection(
    keys=("ours", "theirs"), matching=40, bits=48, compared=2, p_value=1e-5,
    false_positive_rate=1e-3, detected=True,
)  # fmt: skip
NOT = KeyDetection(
    keys=(), matching=25, bits=48, compared=2, p_value=0.89,
    false_positive_rate=1e-6, detected=False,
)  # fmt: skip
ROWS = [
    row_of("folder/a.png", MARKED),
    row_of("b.png", TIE),
    row_of("c.png", NOT),
    Row(image="d.png", decision="unreadable", reason="is empty (0 bytes)"),
]


def printed(**options):
    file = io.StringIO()
    passed = list(print_rows(ROWS, [row.image for row in ROWS], file=file, **options))
    assert passed == ROWS
    return file.getvalue().splitlines()


def test_print_rows_by_hand():
    assert printed() == [
        "image         matching  p-value  decision    key",
        "folder/a.png  47 of 48  3.5e-13  marked      ours",
        "b.png         40 of 48    1e-05  marked      ours or theirs",
        "c.png         25 of 48     0.89  not marked",
        "d.png                -        -  unreadable: is empty (0 bytes)",
    ]


def test_print_rows_puts_the_claim_below_its_row():
    file = io.StringIO()
    list(print_rows([row_of("a.png", NOT, claim="synthetic, key ours")], ["a.png"], file=file))
    assert file.getvalue().splitlines()[1:] == [
        "a.png  25 of 48     0.89  not marked",
        "    its file says: synthetic, key ours",
    ]


def test_print_rows_leaves_the_keys_out():
    assert printed(keys=False)[:2] == [
        "image         matching  p-value  decision",
        "folder/a.png  47 of 48  3.5e-13  marked",
    ]


def test_print_rows_prints_each_row_as_it_comes():
    file = io.StringIO()
    rows = print_rows(iter(ROWS), ["a"], file=file)
    next(rows)
    assert len(file.getvalue().splitlines()) == 2


def test_write_rows_is_read_back(tmp_path):
    odd = Row(image='x",\n.png', decision="unreadable", reason="a, b")
    path = write_rows(tmp_path / "new" / "found.csv", [*ROWS, odd])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "decision", "key", "matching", "bits", "p_value", "reason",
                             "claim"]  # fmt: skip
    assert rows[0]["p_value"] == "3.5e-13" and rows[1]["key"] == "ours or theirs"
    assert rows[3]["matching"] == "" and rows[3]["reason"] == "is empty (0 bytes)"
    assert rows[4]["image"] == 'x",\n.png' and rows[4]["reason"] == "a, b"
