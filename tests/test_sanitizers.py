"""The tests of the compiled operators on a build that stops at errors in memory and undefined behaviour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ("test_native.py", "test_bad_input.py")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake and a C++ compiler")
def test_operators_pass_their_tests_under_sanitizers(tmp_path):
    setup = ["cmake", "-S", ROOT / "csrc", "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}"]
    run([*setup, "-DPCSSL_SANITIZE=address,undefined"])
    run(["cmake", "--build", tmp_path, "--parallel"])
    # Python itself is built without them: their libraries have to be there before anything else. Leaks are not
    # looked for, because Python and torch keep memory to the end.
    libraries = [library(tmp_path, name) for name in ("libasan.so", "libstdc++.so")]
    env = {
        "PCSSL_LIBRARY": str(tmp_path / "pcssl_native.so"),
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    tests = [ROOT / "tests" / name for name in TESTS]
    run([sys.executable, "-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", *tests], cwd=ROOT, env={**os.environ, **env})


def library(build: Path, name: str) -> str:
    """Where the compiler of this build has a library."""
    cache = (build / "CMakeCache.txt").read_text().splitlines()
    compiler = next(line.split("=", 1)[1] for line in cache if line.startswith("CMAKE_CXX_COMPILER:"))
    return run([compiler, f"-print-file-name={name}"]).strip()


def run(command: list, **options) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout
