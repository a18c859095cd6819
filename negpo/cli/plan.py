"""``negpo plan MODEL``: will it fit, how fast will it be, and what to change."""

import argparse
import math

from negpo.cli._flags import number

DEVICES = ("a100", "h100", "h200", "cpu")


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="memory, operations and speed of a run before it is started",
        description="Memory by part, operations and expected speed of a training run; what does not fit, and the "
        "change that makes it fit. Exit status 1 when it does not fit.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="config.json, model folder, hub id, or a known name such as Llama-3.1-8B")
    add("--method", default="npo", help="a method of negpo train (default: npo)")
    add("--strategy", help="single, ddp, zero1, zero2, zero3, zero3_offload, fsdp2 (default: single or zero3)")
    add("--devices", type=int, default=1, help="on all machines together")
    add("--device", choices=DEVICES, default="h100", help="memory, speed and bandwidth of one (default: h100)")
    add("--device-memory", help="such as 80GiB, instead of the device's own")
    add("--device-tflops", type=number(0, exclude_low=True), help="dense peak, instead of the device's own")
    add("--sequence-length", type=int, default=2048, help="tokens of a row, prompt and answer (default: 2048)")
    add("--answer-share", type=float, default=1.0, help="share of the tokens that are scored (default: 1)")
    add("--micro-batch", type=int, default=4, help="per_device_train_batch_size (default: 4)")
    add("--gradient-accumulation", type=int, help="default: 1; for rollouts, what makes whole groups")
    add("--dtype", choices=("bf16", "fp32"), default="bf16")
    add("--lora-r", type=int, default=0, help="LoRA rank on all linear layers (default: 0, all weights are trained)")
    add("--gradient-checkpointing", action="store_true")
    add("--reference", choices=("auto", "cache", "model", "adapter"), default="auto")
    add("--mfu", type=float, help="share of the peak that is reached (default: 0.4)")
    add("--measured-mfu", metavar="FILE", help="JSON that scripts/bench_scaling.py --save-mfu wrote: device and share")
    add("--engine", choices=("transformers", "vllm", "vllm-server"), default="transformers", help="of the rollouts")
    add("--samples", type=int, default=8, help="completions per prompt (default: 8)")
    add("--max-new-tokens", type=int, help="longest completion (default: half of the sequence length)")
    add("--json", action="store_true", help="machine-readable output")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """0 if the run fits, else 1."""
    settings = settings_of(args)  # refused before transformers is imported
    from negpo.plan import load_shape, make_plan

    plan = make_plan(load_shape(args.model), settings)
    if args.json:
        import json

        print(json.dumps(plan.as_dict(), indent=2))
    else:
        from negpo.plan import render
        from negpo.progress import plain_console

        console = plain_console()
        console.print(*render.tables(plan))
        console.print(*render.verdict(plan), sep="\n", soft_wrap=True)
    return 0 if plan.fits else 1


def settings_of(args: argparse.Namespace):
    """The flags as `negpo.plan.Settings`; ConfigError for what contradicts itself."""
    from negpo.errors import ConfigError
    from negpo.plan.methods import cost_of
    from negpo.plan.settings import DEVICES, Settings, parse_bytes

    device = DEVICES[args.device]
    if args.mfu is not None and args.measured_mfu is not None:
        raise ConfigError("--mfu and --measured-mfu exclude each other: one is given, the other measured")
    flops = device.flops if args.device_tflops is None else args.device_tflops * 1e12
    utilisation = 0.4 if args.mfu is None else args.mfu
    if args.measured_mfu is not None:
        flops, utilisation = _measured(args.measured_mfu)
    accumulation = args.gradient_accumulation
    if accumulation is None:
        groups = cost_of(args.method).updates and min(args.samples, args.micro_batch) > 0
        accumulation = args.samples // math.gcd(args.micro_batch, args.samples) if groups else 1
    names = (
        "method", "devices", "sequence_length", "answer_share", "micro_batch", "dtype", "lora_r",
        "gradient_checkpointing", "reference", "engine", "samples",
    )  # fmt: skip
    return Settings(
        strategy=args.strategy or ("single" if args.devices == 1 else "zero3"),
        gradient_accumulation=accumulation,
        max_new_tokens=args.max_new_tokens or args.sequence_length // 2,
        device_type="cpu" if args.device == "cpu" else "cuda",
        memory=device.memory if args.device_memory is None else parse_bytes(args.device_memory),
        bandwidth=device.bandwidth,
        flops=flops,
        utilisation=utilisation,
        **{name: getattr(args, name) for name in names},
    )


def _measured(path: str) -> tuple[float, float]:
    """(operations per second of the device, share reached) from a file of scripts/bench_scaling.py."""
    from negpo.data.io import read_json
    from negpo.errors import DataError

    values = read_json(path)
    try:
        return float(values["flops"]), float(values["utilisation"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"needs the numbers flops and utilisation ({type(error).__name__}: {error})", file=path
        ) from error
