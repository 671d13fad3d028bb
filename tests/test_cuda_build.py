"""What nvcc made of the CUDA kernels: for which GPUs, and that none keeps its registers in memory."""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from pcssl.sparse import native

ROOT = Path(__file__).parents[1]
GPUS = {80, 86, 89, 90, 100, 120}
SPILLS: dict[str, str] = {}  # kernels that may use the stack, part of the name to the reason


@pytest.fixture(scope="module")
def report() -> str:
    """One line for each architecture and kernel, as csrc/cuda/resource_report.py writes it."""
    if native.LIBRARY is None or not native.cuda_architectures():
        pytest.skip("the package was built without nvcc")
    path = native.LIBRARY.with_name("pcssl_native.resources.txt")
    if not path.exists():
        pytest.skip(f"{path} is not there: install the package again")
    return path.read_text()


def kernels(report: str) -> dict[str, dict[int, dict[str, int]]]:
    """Kernel -> architecture -> what it uses."""
    found = defaultdict(dict)
    for line in report.splitlines():
        architecture, *numbers, name = line.split()
        found[name][int(architecture.removeprefix("sm_"))] = dict(zip(numbers[::2], map(int, numbers[1::2])))
    return found


def test_no_kernel_spills(report):
    used = kernels(report)
    assert len(used) >= 30  # a report of nothing would pass
    for name, architectures in used.items():
        if not any(part in name for part in SPILLS):
            for architecture, numbers in architectures.items():
                memory = [numbers[k] for k in ("stack", "spill_stores", "spill_loads")]
                assert memory == [0, 0, 0], f"{name} on sm_{architecture}: {numbers}"


def test_every_kernel_is_there_for_every_architecture(report):
    built = set(native.cuda_architectures())
    for name, architectures in kernels(report).items():
        assert set(architectures) == built, name
    if not built >= GPUS:
        pytest.skip(f"built for {sorted(built)} alone, by choice or because nvcc knows no more")


def test_the_compiler_had_no_warnings(report):
    assert not re.findall("^.* warning .*$", report, re.MULTILINE)


def test_the_library_loads_where_no_cuda_is_installed(report):
    if not shutil.which("ldd"):
        pytest.skip("there is no ldd to ask what the library needs")
    needed = subprocess.run(["ldd", native.LIBRARY], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in needed and "libcuda" not in needed


@pytest.mark.slow
def test_everything_compiles_without_warnings(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # pip puts cmake beside the interpreter
    if not all(shutil.which(tool, path=path) for tool in ("cmake", "nvcc", "c++")):
        pytest.skip("cmake, nvcc and a C++ compiler are needed")
    switches = ["-DPCSSL_CUDA_ARCHITECTURES=80", "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_CUDA_FLAGS=-Werror all-warnings"]
    for arguments in (["-S", ROOT / "csrc", "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}", *switches],
                      ["--build", tmp_path]):  # fmt: skip
        done = subprocess.run([shutil.which("cmake", path=path), *arguments], env={**os.environ, "PATH": path},
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "pcssl_native.resources.txt").exists()
