"""apps/kaggle.py: a table of digits in, a submission to Kaggle out."""

import pytest
import torch

from apps import kaggle
from apps.kaggle import read_kaggle
from inference import MNISTPredictor
from training.data import load_sample

HEADER = ",".join(f"pixel{i}" for i in range(784))


@pytest.fixture(scope="module")
def digits():
    return load_sample(train=False)[:40]


@pytest.fixture
def lines(digits):
    """The lines of a test.csv of 40 digits."""
    rows = [",".join(map(str, image.flatten().tolist())) for image in digits.images]
    return [HEADER, *rows]


def submit(tmp_path, content, capsys):
    """Run the script on a table; returns the exit code and what was written to stderr."""
    if isinstance(content, list):
        content = "\n".join(content).encode() + b"\n"
    (tmp_path / "test.csv").write_bytes(content)
    table, submission = str(tmp_path / "test.csv"), str(tmp_path / "submission.csv")
    code = kaggle.main([table, submission])
    return code, capsys.readouterr().err


def test_every_digit_of_the_table_is_answered_in_order(tmp_path, digits, lines, capsys):
    assert submit(tmp_path, lines, capsys) == (0, "")
    header, *rows = (tmp_path / "submission.csv").read_text().splitlines()
    assert header == "ImageId,Label"
    read = [prediction.digit for prediction in MNISTPredictor().predict_batch(digits.images)]
    assert rows == [f"{i},{digit}" for i, digit in enumerate(read, start=1)]
    assert (
        torch.tensor(read) == digits.labels
    ).sum() >= 39  # the shipped weights were trained on these


def test_windows_line_ends_a_byte_order_mark_and_no_last_newline_are_fine(tmp_path, lines, capsys):
    submit(tmp_path, lines, capsys)
    expected = (tmp_path / "submission.csv").read_bytes()
    assert submit(tmp_path, b"\xef\xbb\xbf" + "\r\n".join(lines).encode(), capsys) == (0, "")
    assert (tmp_path / "submission.csv").read_bytes() == expected


def test_a_table_with_quoted_values_is_read(tmp_path, digits, lines):
    quoted = [",".join(f'"{value}"' for value in line.split(",")) for line in lines]
    (tmp_path / "test.csv").write_text("\n".join(quoted))
    images, labels, _ = read_kaggle(tmp_path / "test.csv")
    assert labels is None and (images == digits.images.numpy()).all()


def short_row(lines):
    lines[7] = lines[7].rsplit(",", 1)[0]


def letter(lines):
    lines[7] = lines[7].replace(",0,", ",O,", 1)


def too_bright(lines):
    lines[7] = lines[7].replace(",0,", ",256,", 1)


def long_row(lines):
    lines[7] += ",0"


def empty_value(lines):
    lines[7] = lines[7].replace(",0,", ",,", 1)


def fraction(lines):
    lines[7] = lines[7].replace(",0,", ",0.5,", 1)


def blank_line(lines):
    lines.insert(7, "")


def blank_image(lines):
    lines[7] = ",".join(["0"] * 784)


@pytest.mark.parametrize(
    "spoil",
    [short_row, letter, too_bright, long_row, empty_value, fraction, blank_line, blank_image],
)
def test_a_bad_row_is_named_by_its_line_and_nothing_is_written(tmp_path, lines, spoil, capsys):
    (tmp_path / "submission.csv").write_text("of last week")
    spoil(lines)
    code, message = submit(tmp_path, lines, capsys)
    assert code == 1
    assert message.startswith(f"kaggle.py: error: {tmp_path / 'test.csv'}: line 8: ")
    assert message.count("\n") == 1
    assert (tmp_path / "submission.csv").read_text() == "of last week"
    assert {path.name for path in tmp_path.iterdir()} == {"test.csv", "submission.csv"}


@pytest.mark.parametrize(
    "header",
    [
        "",
        HEADER.replace("pixel5,", ""),
        HEADER.replace("pixel5,", "pixel6,"),
        "ImageId,Label",
        "label," + HEADER,
    ],
)
def test_a_wrong_header_is_named(tmp_path, lines, header, capsys):
    code, message = submit(tmp_path, [header, *lines[1:]], capsys)
    assert code == 1
    line = 2 if header.startswith("label") else 1  # there, the rows are one value short
    assert f"test.csv: line {line}: " in message
    assert not (tmp_path / "submission.csv").exists()


def test_a_table_with_labels_is_answered_and_compared_with_them(
    tmp_path, digits, lines, predictor, capsys
):
    read = [prediction.digit for prediction in predictor.predict_batch(digits.images)]
    labels = [(read[0] + 1) % 10, *read[1:]]
    rows = [f"{label},{line}" for label, line in zip(labels, lines[1:], strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["label," + HEADER, *rows]))
    assert kaggle.main([str(tmp_path / "train.csv"), str(tmp_path / "submission.csv")]) == 0
    assert capsys.readouterr().out.endswith(": 40 digits, 39 of them as labelled in the table\n")


GRID = ",".join(f"{row}x{column}" for row in range(1, 29) for column in range(1, 29))
INDEX = ",".join(map(str, range(784)))


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("label," + GRID, "label"),
        (GRID, ""),
        (None, ""),
        (None, "label"),
        (None, "class"),
        (None, "index label"),
        (None, "index"),
        ("," + INDEX, "index"),
        ("id,label," + HEADER, "index label"),
        (',"label",' + HEADER, "index label"),
        (",".join(f"pixel{i}" for i in range(1, 785)) + ",class", "class"),
    ],
)
def test_tables_are_read_as_mnist_is_passed_around(tmp_path, digits, lines, header, columns):
    rows = [header] if header else []
    for i, line in enumerate(lines[1:]):
        label = str(digits.labels[i].item())
        before = {"index": [str(i)], "index label": [str(i), label], "label": [label]}
        after = [label] if columns == "class" else []
        rows.append(",".join([*before.get(columns, []), line, *after]))
    (tmp_path / "mnist.csv").write_text("\n".join(rows))
    images, labels, _ = read_kaggle(tmp_path / "mnist.csv")
    assert (images == digits.images.numpy()).all()
    assert (labels is None) == (columns in ("", "index"))
    assert labels is None or (labels == digits.labels.numpy()).all()


def test_a_bad_row_of_a_table_without_a_header_is_named_by_its_line(tmp_path, lines, capsys):
    lines[8] = lines[8].replace(",0,", ",256,", 1)
    code, message = submit(tmp_path, lines[1:], capsys)
    assert code == 1
    assert "test.csv: line 8: every value must be" in message
    code, message = submit(
        tmp_path, [f"{i % 11},{line}" for i, line in enumerate(lines[9:])], capsys
    )
    assert code == 1
    assert "test.csv: line 11: the label must be a digit, not 10" in message


def test_train_csv_is_read_with_its_labels(tmp_path, digits, lines):
    rows = [f"{label},{row}" for label, row in zip(digits.labels, lines[1:], strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["label," + HEADER, *rows]))
    images, labels, _ = read_kaggle(tmp_path / "train.csv")
    assert (images == digits.images.numpy()).all()
    assert (labels == digits.labels.numpy()).all()
    rows[4] = "10" + rows[4][1:]
    (tmp_path / "train.csv").write_text("\n".join(["label," + HEADER, *rows]))
    with pytest.raises(ValueError, match="line 6: the label must be a digit, not 10"):
        read_kaggle(tmp_path / "train.csv")


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, HEADER.encode() + b"\n\n"])
def test_a_file_that_is_no_table_is_one_line(tmp_path, content, capsys):
    code, message = submit(tmp_path, content, capsys)
    assert code == 1
    assert message.count("\n") == 1
    assert "test.csv: line " in message


@pytest.mark.parametrize("arguments", [[], ["test.csv"], ["a.csv", "b.csv", "c.csv"]])
def test_bad_arguments_are_refused_with_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        kaggle.main(arguments)
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.startswith("kaggle.py: error: ")
    assert error.count("\n") == 1


def test_a_missing_table_and_a_missing_folder_are_one_line(tmp_path, lines, capsys):
    table, submission = str(tmp_path / "test.csv"), str(tmp_path / "no" / "submission.csv")
    assert kaggle.main([table, submission]) == 1
    assert table in capsys.readouterr().err
    (tmp_path / "test.csv").write_text("\n".join(lines))
    assert kaggle.main([table, submission]) == 1
    error = capsys.readouterr().err
    assert submission in error
    assert "None" not in error


def test_a_table_that_never_ends_or_is_too_large_is_one_line(tmp_path, lines, capsys, monkeypatch):
    submission = str(tmp_path / "submission.csv")
    assert kaggle.main(["/dev/zero", submission]) == 1
    assert "Not a regular file: '/dev/zero'" in capsys.readouterr().err
    monkeypatch.setattr(kaggle, "MAX_TABLE_SIZE", 10_000)
    assert "test.csv: too large: over 10,000 bytes" in submit(tmp_path, lines, capsys)[1]
