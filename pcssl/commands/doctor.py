"""`pcssl doctor`: what is installed here, what runs the operators, and how to get more."""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pcssl.errors import in_one_line

# torch and the engines may be broken, so they are imported below, where that is caught.

# module -> what it is for
PACKAGES = {
    "spconv": "the spconv engine",
    "torch_scatter": "segment sums of the spconv engine",
    "open3d": "windows of `pcssl visualize`",
    "viser": "browser pages of `pcssl visualize`",
}
Found = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pcssl doctor`."""
    parser.add_argument("--json", action="store_true", help="the same for programs")


def run(args: argparse.Namespace) -> int:
    """Look and tell; 0 whatever is found."""
    found = examine()
    print(json.dumps(found, indent=1) if args.json else report(found))
    return 0


def examine() -> Found:
    """What is there, as plain values: None for what is not, {"error": ...} for what is broken."""
    found = {"pcssl": _pcssl(), "python": {"version": platform.python_version(), "executable": sys.executable}}
    found |= {"torch": _try(_torch), "gpus": _try(_gpus), "engines": _try(_engines)}
    runs = found["engines"].get("native", "unknown") is None
    found |= {"native": _try(_native) if runs else None, "auto": _try(_auto, found["engines"])}
    for gpu in _list(found["gpus"]):
        gpu["covered"] = covers((found["native"] or {}).get("cuda_architectures"), gpu["capability"])
    found["packages"] = {name: _try(_package, name) for name in PACKAGES}
    found["advice"] = _advice(found)
    return found


def _try(look: Callable[..., Any], *args: Any) -> Any:
    try:
        return look(*args)
    except Exception as error:
        return {"error": in_one_line(error)}


def _list(found: list[Found] | Found) -> list[Found]:
    return [] if "error" in found else found


def _pcssl() -> Found:
    try:
        version = importlib.metadata.version("pcssl")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {"version": version, "path": str(Path(__file__).parents[1])}


def _torch() -> Found:
    import torch

    return {"version": str(torch.__version__), "cuda": torch.version.cuda}


def _gpus() -> list[Found]:
    from torch import cuda

    names = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    capabilities = ["{}.{}".format(*cuda.get_device_capability(i)) for i in range(len(names))]
    return [{"name": name, "capability": capability} for name, capability in zip(names, capabilities)]


def _engines() -> dict[str, str | None]:
    """Every engine, with why it cannot run here or None."""
    from pcssl.sparse.engine import MODULES, why_missing

    return {name: why_missing(name) for name in MODULES} | {"reference": None}


def _native() -> Found:
    """What was compiled."""
    import torch

    from pcssl.sparse import native

    return {
        "library": str(native.LIBRARY),
        "cpu": native.current_cpu(),
        "cpus": _usable_cpus(),
        "threads": torch.get_num_threads(),
        "cuda_architectures": cuda_architectures(native.LIBRARY),
    }


def _usable_cpus() -> list[str]:
    """The instruction sets that both this CPU and the library have, widest first."""
    from pcssl.sparse import native

    before, found = native.current_cpu(), []
    for name in native.CPUS:
        try:
            native.use_cpu(name)
            found.append(name)
        except ValueError:
            pass
    native.use_cpu(before)
    return found


def cuda_architectures(library: Path) -> str | None:
    """What the library's CUDA kernels were compiled for, as "80,90"; None if it has none."""
    symbol = getattr(ctypes.CDLL(str(library)), "pcssl_cuda_architectures", None)
    if symbol is None:
        return None
    symbol.restype = ctypes.c_char_p
    return (symbol() or b"").decode() or None


def covers(architectures: str | None, capability: str) -> bool:
    """Whether code for these architectures ("80,90a") runs on a GPU of this capability ("8.6").

    It runs on its own and on later ones of the same generation; with a letter, on its own only.
    """
    major, minor = map(int, capability.split("."))
    for name in architectures.split(",") if architectures else ():
        number, exact = int(name.rstrip("af")), not name.isdigit()
        if number // 10 == major and (number % 10 == minor if exact else number % 10 <= minor):
            return True
    return False


def _auto(engines: dict[str, str | None]) -> Found:
    from pcssl.sparse.engine import PREFERENCE

    name = next(n for n in PREFERENCE if engines[n] is None)
    passed = [f"no {n}: {engines[n]}" for n in PREFERENCE[: PREFERENCE.index(name)]]
    return {"engine": name, "why": "; ".join(passed) or "its compiled operators are there"}


def _package(module: str) -> Found | None:
    """Name and version of an optional package; spconv has a name for every version of CUDA."""
    if importlib.util.find_spec(module) is None:
        return None
    name = importlib.metadata.packages_distributions()[module][0]
    return {"name": name, "version": importlib.metadata.version(name)}


def _advice(found: Found) -> list[str]:
    """What to do to get more out of this machine."""
    if "error" in found["torch"]:
        return ['torch does not work: run `pip install "torch>=2.11,<2.14"`']
    if "error" in found["engines"]:
        return ["pcssl does not work: run `pip install` again"]
    from pcssl.sparse.engine import REMEDIES

    gpus, native, lines = _list(found["gpus"]), found["native"], []
    if native is None or "error" in native:
        lines.append(f"for the native engine {REMEDIES['native']}")
    elif gpus and not native["cuda_architectures"]:
        lines.append("for the native engine on the GPU install the CUDA toolkit (nvcc) and run `pip install` again")
    elif not all(gpu["covered"] for gpu in gpus):
        lines.append("the native engine was compiled for other GPUs: run `pip install` again on this machine")
    if found["engines"]["spconv"] is not None:
        lines.append(f"to compare with spconv {REMEDIES['spconv']}")
    elif found["packages"]["torch_scatter"] is None:
        lines.append("for its segment sums run `pip install --no-build-isolation torch-scatter`")
    return lines


def report(found: Found) -> str:
    """The findings of `examine` as text."""
    pcssl, python = found["pcssl"], found["python"]
    rows = [
        ("pcssl", f"{pcssl['version'] or 'not installed, run from its folder'}  ({pcssl['path']})"),
        ("Python", f"{python['version']}  ({python['executable']})"),
        *_torch_rows(found["torch"], found["gpus"]),
        *_engine_rows(found),
        *((name, f"{_package_line(found['packages'][name])}  ({use})") for name, use in PACKAGES.items()),
        *(("to get more", line) for line in found["advice"]),
    ]
    return "\n".join(f"{name:18}{text}" for name, text in rows)


def _torch_rows(torch: Found, gpus: list[Found] | Found) -> list[tuple[str, str]]:
    if "error" in torch:
        return [("torch", f"broken: {torch['error']}")]
    rows = [("torch", f"{torch['version']}, {'CUDA ' + torch['cuda'] if torch['cuda'] else 'a build without CUDA'}")]
    if "error" in gpus:
        return [*rows, ("GPU", f"broken: {gpus['error']}")]
    for gpu in gpus:
        covered = "the native engine is" if gpu["covered"] else "the native engine is not"
        rows.append(("GPU", f"{gpu['name']}, capability {gpu['capability']}, for which {covered} compiled"))
    return rows if gpus else [*rows, ("GPU", "none that torch can see")]


def _engine_rows(found: Found) -> list[tuple[str, str]]:
    engines, native, auto = found["engines"], found["native"], found["auto"]
    if "error" in engines:
        return [("engines", f"broken: {engines['error']}")]
    rows = [(f"engine {name}", f"cannot run: {why}" if why else "can run") for name, why in engines.items()]
    if native and "error" in native:
        rows.append(("native", f"broken: {native['error']}"))
    elif native:
        cuda = native["cuda_architectures"]
        rows += [
            ("native library", native["library"]),
            ("native CPU", f"{native['cpu']}, of {', '.join(native['cpus'])}; OpenMP threads: {native['threads']}"),
            ("native CUDA", f"architectures {cuda}" if cuda else "not built: no nvcc at build time"),
        ]
    return [*rows, ("auto takes", f"{auto['engine']}  ({auto['why']})")]


def _package_line(package: Found | None) -> str:
    if package is None:
        return "not installed"
    return f"broken: {package['error']}" if "error" in package else f"{package['name']} {package['version']}"
