"""der-tf analyze as a user runs it: a whole report of real runs, and refusals."""

import csv
import html.parser
import json
import shutil

import pytest

from der_tf.cli import main


class Page(html.parser.HTMLParser):
    """What a report refers to, its text, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.rows, self.words = [], [], [], []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [
            value for name, value in attributes if name in ("src", "href", "data", "action")
        ]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    @property
    def cells(self):
        return {row[0]: row[1:] for row in self.rows if row}


@pytest.fixture(scope="module")
def analyzed(finished):
    """A report of two runs: one with energies.csv, and an older one without."""
    run, older, out = finished / "run", finished / "older", finished / "out"
    shutil.copytree(run, older)
    (older / "energies.csv").unlink()
    shutil.rmtree(older / "energies")
    record = json.loads((older / "config.json").read_text())
    record["configuration"]["der_weight"] = 2.5
    (older / "config.json").write_text(json.dumps(record))
    arguments = ["analyze", str(run), str(older), "--out", str(out), "--num-examples", "20"]
    assert main(arguments) == 0
    return finished


def test_a_report_holds_every_run_and_refers_to_nothing_outside(analyzed):
    text = (analyzed / "out" / "report.html").read_text()
    page = Page(text)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "http" not in text
    assert page.rows[0] == ["", "run", "older"]
    assert any(word.startswith("older: no energies.csv") for word in page.words)
    # Two figures over both runs, the samples of one; landscapes, steps and energies of both.
    pictures = {path.name for path in (analyzed / "out").glob("*.png")}
    assert len(page.references) == len(pictures) == 2 + 1 + 2 + 2 + 2


def test_numbers_in_the_table_are_those_of_the_files(analyzed):
    cells = Page((analyzed / "out" / "report.html").read_text()).cells
    with open(analyzed / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["val_robust_accuracy"]))
    assert cells["best epoch"] == 2 * [best["epoch"]]
    for name, metric in (("clean", "val_clean_accuracy"), ("PGD", "val_robust_accuracy")):
        for which, row in (("best", best), ("last", rows[-1])):
            expected = f"{100 * float(row[metric]):.2f} %"
            assert cells[f"validation {name}, {which} epoch"] == 2 * [expected]
    report = json.loads((analyzed / "run" / "evaluation.json").read_text())
    assert cells["images"] == 2 * [f"{report['images']:,}"]
    pgd = report["attacks"]["pgd"]
    called = f"pgd-{pgd['config']['steps']} (linf 0.1)"
    for name, result in (("clean", report["natural"]), (called, pgd)):
        assert cells[name][0].startswith(f"{100 * result['accuracy']:.2f} % (")
    # Configuration: what is always told, and what differs.
    assert cells["der weight"] == ["30.0", "2.5"]
    assert cells["dataset"] == ["digits", "digits"]
    assert "width" not in cells


def test_a_run_without_its_networks_is_shown_by_its_files(analyzed):
    """Such as one whose tables were brought from another machine."""
    run = analyzed / "tables"
    shutil.copytree(analyzed / "run", run, ignore=shutil.ignore_patterns("*.keras"))
    out = analyzed / "of_tables"
    assert main(["analyze", str(run), str(analyzed / "run"), "--out", str(out)]) == 0
    assert (out / "landscape-run.png").exists()
    assert not (out / "landscape-tables.png").exists()
    text = (out / "report.html").read_text()
    assert text.count("tables: its networks are not here.") == 3
    alone = analyzed / "of_tables_alone"
    assert main(["analyze", str(run), "--out", str(alone)]) == 0
    assert {path.name for path in alone.glob("*.png")} == {
        "energy_and_error.png",
        "abnormality.png",
        "samples-tables.png",
    }


def test_what_a_run_does_not_read_of_der_is_an_empty_cell(analyzed):
    plain = analyzed / "plain"
    shutil.copytree(analyzed / "run", plain)
    record = json.loads((plain / "config.json").read_text())
    record["configuration"] |= {"der_weight": 0.0, "der_penalty": "huber"}
    (plain / "config.json").write_text(json.dumps(record))
    out = analyzed / "of_plain"
    assert main(["analyze", str(analyzed / "run"), str(plain), "--out", str(out)]) == 0
    cells = Page((out / "report.html").read_text()).cells
    assert cells["der weight"][1] == "0.0"
    assert cells["der penalty"][0] != "" == cells["der penalty"][1]


def test_a_failed_report_leaves_the_old_one(analyzed, capsys):
    place = analyzed / "kept"
    shutil.copytree(analyzed / "out", place)
    before = (place / "report.html").read_bytes()
    (place / "energy_and_error.png").unlink()
    (place / "energy_and_error.png").mkdir()
    assert main(["analyze", str(analyzed / "run"), "--out", str(place)]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert (place / "report.html").read_bytes() == before
    assert not list(place.glob(".partial*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "1,x"], ["--epochs", "'1,x'"]),
        (["--epochs", "9"], ["--epochs", "received 9"]),
        (["--num-examples", "0"], ["--num-examples", ">= 1"]),
        (["--num-examples", "100000"], ["validation images", "--num-examples 100000"]),
    ],
)
def test_unusable_options_are_one_line_and_status_2(options, words, finished, capsys):
    assert main(["analyze", str(finished / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_images_are_those_that_the_run_validates_on(finished, capsys):
    few = finished / "few"
    shutil.copytree(finished / "run", few)
    record = json.loads((few / "config.json").read_text())
    record["configuration"]["validation_size"] = 20
    (few / "config.json").write_text(json.dumps(record))
    for runs in ([few], [finished / "run", few]):
        assert main(["analyze", *map(str, runs), "--num-examples", "21"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "20 images of digits are validation images" in err


def test_a_damaged_file_is_one_line_before_networks_are_loaded(finished, capsys):
    damaged = finished / "damaged"
    shutil.copytree(finished / "run", damaged)
    path = damaged / "energies" / "epoch-0002.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    assert main(["analyze", str(damaged)]) == 2
    out, err = capsys.readouterr()
    assert "loading its networks" not in out
    assert err.count("\n") == 1
    assert str(path) in err


def test_what_is_no_run_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["analyze", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path) in err
    assert "has no config.json" in err
