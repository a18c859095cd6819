"""``negpo extrapolate``: unlearning by arithmetic on checkpoints, without training."""

from __future__ import annotations

import argparse

from negpo.cli._flags import number, output_folder


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "extrapolate",
        help="walk away from a fine-tune in weight space, or mix checkpoints",
        description="MODEL - weight * (AWAY_FROM - ORIGIN), in float32, rounded once. Without --origin it "
        "is MODEL itself: away from an update on own samples. With --mix: ratio * MODEL + (1 - ratio) * OTHER.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", help="where the walk starts: folder or Hub id")
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--away-from", metavar="MODEL", help="the fine-tune to walk away from")
    other.add_argument("--mix", metavar="MODEL", help="the unlearned model to mix with")
    parser.add_argument("--origin", metavar="MODEL", help="where the fine-tune started; default: the model")
    parser.add_argument("--weight", type=number(-1e6, 1e6), help="how far to walk (MUSE: 1)")
    parser.add_argument("--ratio", type=number(0, 1), help="--mix: share of the first model")
    parser.add_argument("--out", type=output_folder, required=True, help="new folder of the result")


def run(args: argparse.Namespace, extra: list[str]) -> int:
    from negpo.errors import ConfigError
    from negpo.weights import extrapolate_checkpoints, mix_checkpoints

    given, needed, *others = ("--mix", "ratio", "weight", "origin") if args.mix else ("--away-from", "weight", "ratio")
    if getattr(args, needed) is None:
        raise ConfigError(f"{given} needs --{needed}")
    if ignored := [name for name in others if getattr(args, name) is not None]:
        raise ConfigError(f"--{ignored[0]} would be ignored with {given}; leave it out")
    if args.mix:
        out = mix_checkpoints(args.model, args.mix, args.out, ratio=args.ratio)
    else:
        out = extrapolate_checkpoints(args.model, args.away_from, args.out, weight=args.weight, origin=args.origin)
    print(f"written: {out}")
    return 0
