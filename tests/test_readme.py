"""The README and its neighbours show what the commands, the library and the model really give."""

import ast
import doctest
import graphlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest

import minibert

from .models import model

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / ".github").glob("*.md"))]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


def same(shown, printed):
    """Equal word for word, numbers to the last digit but one; rounding, which differs between processors, is free."""
    numbers = zip(map(Decimal, NUMBER.findall(shown)), map(Decimal, NUMBER.findall(printed)), strict=False)
    close = all(abs(a - b) <= max(2 * min(last_digit(a), last_digit(b)), Decimal("1e-5")) for a, b in numbers)
    return close and NUMBER.sub("#", shown).split() == NUMBER.sub("#", printed).split()


def last_digit(number):
    """What one more in the last digit of a number would add: 0.01 for 1.25; 0 for a whole number, which is a count."""
    exponent = number.as_tuple().exponent
    return Decimal(10) ** exponent if exponent else Decimal(0)


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, flags):
        return super().check_output(want, got, flags) or same(want.replace(doctest.BLANKLINE_MARKER, ""), got)


def blocks(page, language):
    """The code blocks of a page in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [block for its_language, block in found if its_language == language]


def run_minibert(arguments, folder):
    """What the command prints."""
    command = [sys.executable, "-m", "minibert", *shlex.split(arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=60).stdout


def test_numbers_may_differ_by_rounding_and_words_not_at_all():
    assert same("moved by 0.3280, -1.00 2e-07 1.107e+09", "moved by 0.3281,  -1.01 5e-06 1.108e+09")
    assert not same("moved by 0.3280", "moved by 0.3283")
    assert not same("1.1070", "1.107e+09")
    assert not same("1024 tokens", "1023 tokens")
    assert not same("moved by 0.3280", "stays 0.3280")
    assert not same("1 2", "1")


def test_the_lesson_is_what_the_command_prints(tmp_path):
    (shown,) = [block for block in blocks(README, "") if block.startswith("minibert walk: ")]
    printed = iter(run_minibert("", tmp_path).split("\n\n"))
    for paragraph in shown.replace("…\n\n", "").split("\n\n"):  # "…" stands for paragraphs that are left out
        assert any(same(paragraph, each) for each in printed), paragraph


@pytest.mark.parametrize(("name", "least"), [("README.md", 15), ("QUESTIONS.md", 20)])
def test_every_example_prints_what_is_shown(name, least):
    (page,) = [page for page in PAGES if page.name == name]
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks(page, "python")), {}, name, str(page), 0)
    assert len(examples.examples) >= least
    runner = doctest.DocTestRunner(Checker(), verbose=False)
    report = []
    runner.run(examples, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "console")], ids=lambda page: page.name)
def test_every_command_prints_what_is_shown(page, tmp_path):
    for block in blocks(page, "console"):
        command, _, shown = block.removeprefix("$ minibert").partition("\n")
        assert same(shown, run_minibert(command, tmp_path)), command


def test_python_is_shown_only_on_pages_whose_examples_run():
    assert {page.name for page in PAGES if blocks(page, "python")} == {"README.md", "QUESTIONS.md"}


def test_the_readme_can_be_read_in_one_sitting():
    assert len(README.read_text("utf-8").splitlines()) <= 300


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    paths = re.findall(r"`((?:minibert|scripts|tests|\.github|\.ci)/[\w./]+)[^`]*`", text)
    for path in [*(page.parent / link for link in links), *(ROOT / path for path in paths)]:
        from_root = path.resolve().relative_to(ROOT)
        root = Path(minibert.__file__).parents[1] if from_root.parts[0] == "minibert" else ROOT  # it may be installed
        assert (root / from_root).exists(), path


def test_imports_form_no_cycle():
    package = Path(minibert.__file__).parent
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}  # a file or a folder
    imports = {}
    for path in package.rglob("*.py"):
        inside = path.relative_to(package).parts
        room = inside[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == len(inside):  # counted from minibert itself
                names = [node.module] if node.module else [alias.name for alias in node.names]
                first = {name.partition(".")[0] for name in names}
                imports.setdefault(room, set()).update(name if name in rooms else "__init__" for name in first)
    assert "model" in imports["study"]
    list(graphlib.TopologicalSorter(imports).static_order())  # a cycle is an error that shows it


def test_the_versions_in_the_table_of_tools_are_those_that_are_tested():
    table = re.search(r"^\| tools that .*?\n\n", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)[0]
    versions = re.findall(r"([a-z-]+) (\d+\.\d+\.\d+)", table)
    tested = (ROOT / "scripts" / "constraints-ecosystem.txt").read_text("utf-8").splitlines()
    assert len(versions) >= 9
    assert [f"{name}=={version}" for name, version in versions if f"{name}=={version}" not in tested] == []


def test_the_tables_of_the_benchmark_are_what_it_prints():
    table = re.compile(r"^<!-- scripts/benchmark\.py (.*?) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
    for page in PAGES:
        for arguments, shown in table.findall(page.read_text("utf-8")):
            command = [sys.executable, "scripts/benchmark.py", *arguments.split()]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
            assert shown.split() == done.stdout.split(), f"{page.name}: {arguments}\n{done.stdout}{done.stderr}"


class TestDiagram:
    script = runpy.run_path(str(ROOT / "scripts" / "diagram.py"))
    picture = ElementTree.fromstring(script["draw"]())

    def drawn(self, class_name):
        return {box.get("data-step") for box in self.picture.iter() if box.get("data-model") == class_name}

    def test_the_picture_in_the_readme_is_what_the_script_draws(self):
        assert self.script["PICTURE"].read_text("utf-8") == self.script["draw"]()

    def test_every_step_of_the_encoder_is_drawn_and_no_other(self):
        encoder = model("DistilBertModel", n_layers=1)
        names = {name for name, part in encoder.named_modules() if not list(part.children())}
        assert self.drawn("DistilBertModel") == {name.replace("layer.0", "layer.N") for name in names}

    @pytest.mark.parametrize(
        ("head", "drawn_as"),
        [
            ("DistilBertForMaskedLM", "DistilBertForMaskedLM"),
            ("DistilBertForSequenceClassification", "DistilBertForSequenceClassification"),
            ("DistilBertForTokenClassification", "DistilBertForTokenClassification"),
            ("DistilBertForQuestionAnswering", "DistilBertForQuestionAnswering"),
            ("DistilBertForMultipleChoice", "DistilBertForSequenceClassification"),
        ],
    )
    def test_every_step_of_a_head_is_drawn_and_no_other(self, head, drawn_as):
        assert self.drawn(drawn_as) == {name for name, _ in model(head).named_children()} - {"distilbert"}

    def test_a_box_shows_the_last_part_of_its_name(self):
        boxes = [box for box in self.picture.iter() if box.get("data-step")]
        assert len(boxes) > 30
        for box in boxes:
            assert box[1].text == box.get("data-step").rpartition(".")[2]
