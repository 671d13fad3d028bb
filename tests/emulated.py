"""The CUDA operators on CPU tensors, compiled for the emulator (csrc/emulator)."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from pcssl.sparse import native

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "emulator"
BINARY = BUILD / "emulator" / "pcssl_emulated.so"


def library():
    """`torch.ops.pcssl_emulated`, built if a source has changed; skips the test where nothing can be compiled."""
    missing = _load()
    if missing:
        pytest.skip(f"the emulator is not built: there is no {missing}")
    return torch.ops.pcssl_emulated


@cache
def _load() -> str | None:
    # Tools that pip installed lie beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool, names in (("cmake", ["cmake"]), ("C++ compiler", [os.environ.get("CXX") or "c++", "g++", "clang++"])):
        if not any(shutil.which(name, path=path) for name in names):
            return tool
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes one builds
        if not (BUILD / "CMakeCache.txt").exists():
            switches = [f"-DPython_EXECUTABLE={sys.executable}", "-DPCSSL_EMULATOR=ON", "-DPCSSL_CUDA=OFF"]
            _run([shutil.which("cmake", path=path), "-S", ROOT / "csrc", "-B", BUILD, *generator, *switches], path)
        _run([shutil.which("cmake", path=path), "--build", BUILD, "--target", "pcssl_emulated"], path)
    torch.ops.load_library(str(BINARY))
    native.register("pcssl_emulated")
    return None


def _run(command: list, path: str) -> None:
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
