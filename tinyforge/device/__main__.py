"""``python -m tinyforge_device predict|bench|selftest|verify BUNDLE``: data on stdout, chatter on stderr.

Exit codes: 0 done and passed · 1 a check failed · 2 usage, data or bundle · 3 a package or runtime is missing ·
5 internal · 130 interrupted.

This file imports the other modules inside functions alone: one of them may have been lost or cut on its way to the
device, and that is said in one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def _parser() -> argparse.ArgumentParser:
    from .tiers import TIERS, tiers_text

    parser = argparse.ArgumentParser(prog="tinyforge_device", description="Run, measure and check a TinyForge bundle.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("bundle", help="folder that holds bundle.json")
        sub.add_argument("--json", action="store_true", help="one JSON object on stdout")
        return sub

    predict = command("predict", "Classify image files.")
    predict.add_argument("images", nargs="+")
    predict.add_argument("--top", type=_positive, default=1, metavar="K", help="answers per image (default 1)")
    predict.add_argument("--variant", help="model to use (default: the chosen one)")
    bench = command("bench", "Measure latency, load time and memory.")
    bench.add_argument(
        "--variant", action="append", help="model to measure, repeatable; 'all' for all that can run here"
    )
    bench.add_argument("--threads", type=_counts, metavar="N,N", help="inference threads, each in turn: 1,2,4")
    bench.add_argument("--images", nargs="+", help="image files to measure on (default: those of the self-test)")
    bench.add_argument("--test", metavar="FOLDER", help="labelled images, FOLDER/<class>/*: accuracy here")
    bench.add_argument("--tier", choices=list(TIERS), default="quick", help=tiers_text())
    bench.add_argument("--seconds", type=_duration, help="at least this long, instead of the tier's ...")
    bench.add_argument("--runs", type=_positive, help="... and this often: 64 for a p90, 662 for a p99")
    bench.add_argument("--warmup", type=_positive, default=20, help="runs per warm-up window (default 20)")
    selftest = command("selftest", "Compare this machine with the golden vectors.")
    selftest.add_argument("--variant", action="append", help="model to test, repeatable (default: all that can run)")
    verify = command("verify", "Check hashes, metadata, golden vectors, and recompute every number from raw data.")
    verify.add_argument("--digest", metavar="SHA256", help="what `sha256sum bundle.json` must print")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _duration(text: str) -> float:
    from .tiers import LONGEST

    value = float(text)
    if not 0 <= value <= LONGEST:
        raise argparse.ArgumentTypeError(f"must be between 0 and {LONGEST}")
    return value


def _counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _predict(options: argparse.Namespace) -> tuple[Any, str, int]:
    from .bundle import load_bundle
    from .plain import plain
    from .predict import open_bundle, predict
    from .report import predictions_text

    bundle = load_bundle(options.bundle)
    results = predict(bundle, open_bundle(bundle, options.variant), options.images, options.top)
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(plain(f"{result['image']}: {result['error']}"), file=sys.stderr)
    return {"predictions": results}, predictions_text(results), 2 if failed else 0


def _bench(options: argparse.Namespace) -> tuple[Any, str, int]:
    from .bench import bench_bundle
    from .bench_report import bench_text
    from .bundle import load_bundle
    from .tiers import TIERS

    bundle = load_bundle(options.bundle)
    seconds, runs = TIERS[options.tier]
    report = bench_bundle(
        bundle,
        variants=options.variant,
        threads=options.threads,
        images=options.images,
        test=options.test,
        seconds=seconds if options.seconds is None else options.seconds,
        min_runs=options.runs or runs,
        warmup=options.warmup,
    )
    return report, bench_text(report), 0 if report["conditions"]["valid"] else 1


def _selftest(options: argparse.Namespace) -> tuple[Any, str, int]:
    from .bundle import load_bundle
    from .report import outcome_text
    from .selftest import run_selftest

    outcome = run_selftest(load_bundle(options.bundle, sealed=False), options.variant)
    return outcome.to_json(), outcome_text(outcome.to_json(), "selftest"), 0 if outcome.ok else 1


def _verify(options: argparse.Namespace) -> tuple[Any, str, int]:
    from .report import outcome_text
    from .verify import verify_bundle

    outcome = verify_bundle(options.bundle, options.digest)
    return outcome.to_json(), outcome_text(outcome.to_json(), "verify"), 0 if outcome.ok else 1


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    value, text, code = globals()[f"_{options.command}"](options)
    print(json.dumps(value, indent=1) if options.json else text)
    return code


def _told(fault: Exception) -> tuple[str, int]:
    """(message, exit code) of what went wrong. Own faults are known by name: their modules may be the damaged ones."""
    kinds = {kind.__name__ for kind in type(fault).__mro__ if kind.__module__.startswith(f"{__package__}.")}
    if "MissingRuntime" in kinds:
        return str(fault), 3
    if "ProcessKilled" in kinds:
        return str(fault), 4
    if kinds & {"BundleFault", "DecodeFault", "RuntimeFault"}:
        return str(fault), 2
    damaged = _damaged(fault)
    if damaged:
        return f"this bundle's program is damaged: {damaged}; copy the bundle again", 2
    if isinstance(fault, ImportError):
        return f"{fault.name or fault} is missing; pip install -r requirements.txt", 3
    return f"internal: {type(fault).__name__}: {fault}", 5


def _damaged(fault: Exception) -> str:
    """The file of this package that is missing or cut, where ``fault`` may come from that; else ''."""
    name = (isinstance(fault, ImportError) and fault.name) or ""
    if name.startswith(f"{__package__}."):
        return f"{HERE.name}/{name.rpartition('.')[2]}.py"
    if isinstance(fault, SyntaxError) and Path(fault.filename or "").resolve().parent == HERE:
        return f"{HERE.name}/{Path(fault.filename).name}"
    return next(iter(_changed()), "")


def _changed() -> list[str]:
    """Files of this package that are not as the bundle.json beside it lists them; none where there is no such file."""
    root = HERE.parent
    try:
        listed = json.loads((root / "bundle.json").read_bytes())["files"]
        mine = {name: sha256 for name, sha256 in listed.items() if name.startswith(f"{HERE.name}/")}
        return [name for name, sha256 in mine.items() if _sha256(root / name) != sha256]
    except Exception:
        return []


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _complain(message: str, code: int) -> int:
    try:
        from .plain import plain
    except Exception as fault:
        (message, code), plain = _told(fault), str
    print("error: " + "\n".join(plain(line) for line in message.split("\n")), file=sys.stderr)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code (argparse itself exits with 2 on wrong usage)."""
    try:
        return _run(argv)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as fault:
        return _complain(*_told(fault))


if __name__ == "__main__":
    sys.exit(main())
