"""Builds the C++ extension; everything else about the package stands in pyproject.toml.

`LAYERCOOP_BUILD_JOBS` limits how many files are compiled at once (default: one a processor).
"""

from __future__ import annotations

from glob import glob
from sysconfig import get_platform

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# No -march=native: one binary runs on every machine, and csrc/cpu/dispatch.h picks the vector instructions at run time.
flags = ["-O3", "-Wall", "-Wextra", "-pthread"]
# ARM's compilers fuse products with sums wherever they can; the core says where it means that (csrc/README.md).
if get_platform().endswith(("aarch64", "arm64")):
    flags.append("-ffp-contract=off")
extension = Pybind11Extension(
    "layercoop_fast._C",
    sorted(glob("csrc/**/*.cpp", recursive=True)),
    depends=sorted(glob("csrc/**/*.h", recursive=True)),
    include_dirs=["csrc"],
    cxx_std=17,
    extra_compile_args=flags,
    extra_link_args=["-pthread"],
)

ParallelCompile("LAYERCOOP_BUILD_JOBS").install()
setup(ext_modules=[extension])
