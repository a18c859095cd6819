"""What a user typed or gave never ends in another library's traceback, and nothing shown is read as markup."""

import ast
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negpo import cli
from negpo.cli import _hub
from negpo.cli._flags import natural, number, output_file, output_folder, positive
from negpo.data.io import read_json, read_yaml
from negpo.data.problems import custom_benchmark
from negpo.errors import ConfigError, DataError, NegpoError
from negpo.progress import plain_console, progress_bar

ROOT = Path(__file__).resolve().parents[2]
TAGS = "runs/[/red] [bold]x[/] :smile:"


def outcome(argv, capsys) -> tuple[int, list[str]]:
    """Exit status and the lines on standard error."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()


def refused(argv, capsys) -> str:
    """The last line of a command that must end with status 2 and without a traceback."""
    status, lines = outcome(argv, capsys)
    assert status == 2, lines
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


# ---- a reader that goes away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train npo --help", "eval tofu --help"])
def test_a_reader_that_has_gone_is_no_traceback(command):
    """A pipe without a reader, from the first byte on. (argparse itself passes over what it cannot write.)"""
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "negpo", *command.split()]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_tables_too_raise_broken_pipe_where_rich_would_exit_with_1():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = plain_console()
    console.file = Gone()
    with pytest.raises(BrokenPipeError):
        console.print("x")


def test_a_name_that_the_terminal_cannot_show_is_shown_escaped():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "negpo", "report", "kätzchen-\udcff"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert rb"k\xe4tzchen-\udcff" in done.stderr
    assert b"Traceback" not in done.stderr


# ---- numbers and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-1", "0", "1.5", "nan", "", "1e3", "9" * 5000, "١" * 30])
def test_a_count_is_a_whole_number_of_one_or_more(text):
    with pytest.raises(Exception, match="whole number"):
        positive(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1.1", "x", ""])
def test_a_share_is_a_finite_number_from_0_to_1(text):
    with pytest.raises(Exception, match="not a number"):
        number(0, 1)(text)


def test_the_borders_of_numbers_belong_to_them():
    assert (natural("0"), positive("1"), number(0, 1)("0"), number(0, 1)("1")) == (0, 1, 0.0, 1.0)
    with pytest.raises(Exception, match="above 0"):
        number(0, exclude_low=True)("0")


LIMITS = [
    ["eval", "math500", "--model", "m", "--out", "o"],
    ["eval", "tofu", "--model", "m", "--out", "o", "--is-retain"],
    ["eval", "muse", "--corpus", "news", "--model", "m", "--out", "o", "--is-retain"],
    ["eval", "wmdp", "--model", "m", "--out", "o"],
    ["audit", "m", "--target", "t", "--retain", "r"],
]


@pytest.mark.parametrize("argv", LIMITS, ids=lambda argv: argv[1] if argv[0] == "eval" else argv[0])
def test_a_negative_limit_drops_nothing_it_is_refused(argv, capsys):
    assert "--limit" in refused([*argv, "--limit", "-1"], capsys)


def parsers(parser, prefix=()):
    yield " ".join(prefix), parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, child in action.choices.items():
                yield from parsers(child, (*prefix, name))


def test_every_flag_for_an_output_is_checked_before_anything_runs():
    for name, parser in parsers(cli.build_parser()):
        for action in parser._actions:
            if {"--out", "--output"} & set(action.option_strings):
                assert action.type in (output_folder, output_file), name


def test_no_flag_takes_any_number_whatever():
    """Except those of `negpo plan`, which Settings checks with its own sentences."""
    for name, parser in parsers(cli.build_parser()):
        loose = [action.dest for action in parser._actions if action.type in (int, float)]
        assert name in ("plan", "data rationales") or not loose, name


@pytest.mark.parametrize("kind", ["under a file", "is a file", "too long", "zero byte"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(kind, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    names = {"under a file": "file/out", "is a file": "file", "too long": "a" * 300, "zero byte": "a\0b"}
    out = f"{tmp_path}/{names[kind]}"
    assert "--out" in refused(["eval", "tofu", "--model", "m", "--is-retain", "--out", out], capsys)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_file_system_is_one_line(monkeypatch, capsys):
    def full(args, extra):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(cli.doctor, "run", full)
    assert outcome(["doctor"], capsys) == (2, ["negpo: error: runs/x: No space left on device"])


def test_a_report_of_nothing_says_what_it_wants(tmp_path, capsys):
    assert "there is no folder" in refused(["report", str(tmp_path / "nope")], capsys)
    assert "no results" in refused(["report", str(tmp_path)], capsys)


# ---- files that people write -----------------------------------------------------------------------------------------

NOT_YAML = {
    "not UTF-8": (b"name: caf\xe9\n", "not UTF-8"),
    "a list": (b"- 1\n- 2\n", "found list"),
    "a text": (b"hello\n", "found str"),
    "a number": (b"3\n", "found int"),
    "bad syntax": (b"a: [1, 2\n", "not readable as YAML"),
    "a tab": (b"a:\n\t- b\n", "not readable as YAML"),
    "a null key": (b"null: 1\n", "not text"),
    "a number as key": (b"1: 2\n", "not text"),
    "a list as key": (b"? [a, b]\n: 1\n", "not readable as YAML"),
    "a key twice": (b"a: 1\nb: 2\na: 3\n", "'a' stands there twice"),
    "an impossible date": (b"a: 2020-13-45\n", "not readable as YAML"),
    "many digits": (b"a: " + b"9" * 5000 + b"\n", "not readable as YAML"),
    "many brackets": (b"[" * 5000, "not readable as YAML"),
    "a control character": (b"a: \x07\n", "not readable as YAML"),
    "a tag of Python": (b"a: !!python/object/apply:os.system ['true']\n", "not readable as YAML"),
    "an unknown alias": (b"a: *b\n", "not readable as YAML"),
}


@pytest.mark.parametrize("kind", NOT_YAML)
def test_what_is_no_mapping_in_yaml_is_one_line_that_names_the_file(kind, tmp_path):
    content, message = NOT_YAML[kind]
    (tmp_path / "mine.yaml").write_bytes(content)
    for read in (read_yaml, custom_benchmark):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / "mine.yaml")
        assert "mine.yaml" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_empty_file_and_one_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "empty.yaml").write_bytes(b"# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfa: {b: 1}\n")
    assert read_yaml(tmp_path / "mark.yaml") == {"a": {"b": 1}}


def test_merge_keys_of_yaml_are_no_repetition(tmp_path):
    (tmp_path / "merged.yaml").write_text("base: &b {x: 1}\none: {<<: *b, y: 2}\n")
    assert read_yaml(tmp_path / "merged.yaml")["one"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("where", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(where, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_yaml(tmp_path / where)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 50_000, b""])
def test_what_is_no_object_in_json_is_one_line_that_names_the_file(content, tmp_path):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.json"):
        read_json(tmp_path / "mine.json")


WRONG_VALUES = ["name: [a]", "name: 3", "data: {a: 1}", "split: [test]", "kind: 3", "fields: [q]", "fields: {gold: 3}",
                "fields: {golds: a}", "data: null", "name: ''"]  # fmt: skip


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_a_value_of_the_wrong_type_in_a_benchmark_file_is_named(line, tmp_path):
    lines = {"name": "name: mine", "data": "data: rows.jsonl"} | {line.partition(":")[0]: line}
    (tmp_path / "mine.yaml").write_text("\n".join(lines.values()) + "\n")
    with pytest.raises(NegpoError, match=line.partition(":")[0]):
        custom_benchmark(tmp_path / "mine.yaml")


@pytest.mark.parametrize("content", ["3", "{}", '{"benchmark": null, "protocol": {}}', '{"benchmark": "gsm8k"}', "{"])
def test_a_folder_that_negpo_eval_did_not_write_is_refused(content, tmp_path, capsys):
    (tmp_path / "manifest.json").write_text(content)
    command = ["data", "steps", "--eval", str(tmp_path), "--model", "m", "--out", str(tmp_path / "out")]
    assert "manifest.json" in refused(command, capsys)


@pytest.mark.parametrize("content", ["3", "{}", '{"flops": "x", "utilisation": 1}', '{"flops": null}', "{"])
def test_a_file_of_measured_speed_is_checked(content, tmp_path, capsys):
    (tmp_path / "mfu.json").write_text(content)
    assert "mfu.json" in refused(["plan", "Llama-3.1-8B", "--measured-mfu", str(tmp_path / "mfu.json")], capsys)


@pytest.mark.parametrize("content", [b"- 1\n", b"null: 1\n", b"beta: caf\xe9\n", b"a: [1\n", b"hello\n", b""])
def test_a_recipe_that_is_no_mapping_is_refused(content, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert "recipe.yaml" in refused(["train", "npo", "--config", str(tmp_path / "recipe.yaml")], capsys)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def shown(*renderables) -> str:
    console = plain_console()
    with console.capture() as captured:
        console.print(*renderables, soft_wrap=True)
    return captured.get()


def test_labels_and_paths_are_shown_as_they_are():
    from rich.table import Table

    table = Table("a", title=TAGS)
    table.add_row(TAGS)
    text = shown(table, TAGS)
    assert text.count("[/red]") == text.count("[bold]x[/]") == text.count(":smile:") == 3


def test_a_progress_bar_shows_its_description_as_it_is(monkeypatch):
    bar = progress_bar()
    bar.add_task(TAGS, total=1)
    assert TAGS in shown(bar.get_renderable())


def test_counts_and_metrics_of_commands_take_any_label(tmp_path, capsys):
    from negpo.cli._data_common import show_counts

    show_counts(TAGS, [(TAGS, 3)], [Path(TAGS) / "x.jsonl"])
    assert capsys.readouterr().out.count("[/red]") == 4


def test_the_title_of_a_plan_is_the_name_that_was_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a name short enough for one line
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = Path("[bold]x[red]")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        cli.main(["plan", str(folder)])
    assert "[bold]x[red]" in capsys.readouterr().out


def test_no_module_makes_a_console_that_reads_markup():
    """negpo.progress is where consoles and bars come from; `from_markup` and markup in strings have no use."""
    for path in [*(ROOT / "negpo").rglob("*.py"), *(ROOT / "eval").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]:
        if path.name == "progress.py" or any(part in ("lab", "report") for part in path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.progress", "rich.markup"):
                names = {name.name for name in node.names} & {"Console", "Progress", "track", "escape", "render"}
                assert not names, f"{path}: {names}"


# ---- the Hub ---------------------------------------------------------------------------------------------------------


def test_a_hub_that_does_not_answer_is_said_once(capsys):
    _hub.quiet_retries()
    _hub.quiet_retries()
    logger = logging.getLogger(_hub.RETRIES)
    [known] = [one for one in logger.filters if isinstance(one, _hub.SayOnce)]
    known.said = False
    for number_ in range(1, 6):
        logger.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://x")
        logger.warning("Retrying in %ss [Retry %s/5].", 1, number_)
    assert capsys.readouterr().err == "negpo: the Hub does not answer; trying again for some seconds\n"


def test_the_logger_of_retries_is_still_the_one_that_huggingface_hub_uses():
    from huggingface_hub.utils import _http

    assert _http.logger.name == _hub.RETRIES


def test_an_unreachable_hub_ends_in_one_line(monkeypatch):
    from negpo.models import load_tokenizer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("nobody/nothing-at-all")
    assert "\n" not in str(caught.value)
    assert "nobody/nothing-at-all" in str(caught.value)
