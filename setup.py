"""Builds the C kernels when a compiler is there; installs without them when not (see README.md)."""

import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class OptionalBuildExt(build_ext):
    """A missing or broken C compiler must not stop the installation: Numba or NumPy then does the work."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # distutils raises many kinds, some of them bare
            self._without_kernels(error)

    def build_extension(self, ext) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            self._without_kernels(error)

    def copy_extensions_to_source(self) -> None:
        try:
            super().copy_extensions_to_source()
        except Exception as error:
            self._without_kernels(error)

    @staticmethod
    def _without_kernels(error: Exception) -> None:
        print(f"pyq: the C kernels could not be built ({error}); installing without them", file=sys.stderr)


class Abi3Wheel(bdist_wheel):
    """The extension uses the limited API: one wheel serves every CPython from 3.10 on."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    cffi_modules=["pyq/_cffi_build.py:ffi"],
    cmdclass={"build_ext": OptionalBuildExt, "bdist_wheel": Abi3Wheel},
)
