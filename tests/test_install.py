"""Ways to install: sdist and wheel, without a C compiler, and editable; each from a copy of a clone, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SITE_PACKAGES = Path(np.__file__).parents[1]

MULTIPLY = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np, pyq, pyq.config
    a, b = np.full((5, 40), 255, np.uint8), np.full((40, 20), -128, np.int8)
    results = [pyq.matmul_integer(a, b, 3) for _ in range(3)]
    chosen = pyq.config.config()
assert all((r == 40 * 252 * -128).all() for r in results)
seen = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
print(json.dumps([pyq.__file__, pyq.available_backends(), chosen["backend"], chosen["kernels"], seen]))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that succeeds; pip may not use the network."""
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PYQ_")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **offline, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def python(cwd: Path, script: str, *path: Path) -> str:
    """Run a script that imports from `path`, and nothing that this environment installs in editable mode (-S)."""
    folders = os.pathsep.join(str(folder) for folder in (*path, SITE_PACKAGES))
    return run(sys.executable, "-S", "-c", script, cwd=cwd, PYTHONPATH=folders)


def installed(cwd: Path, *path: Path) -> tuple[Path, list[str], str, list[str], list[str]]:
    """Where pyq is, its backends, the one chosen, that one's kernels, and the warnings."""
    where, backends, chosen, kernels, warned = json.loads(python(cwd, MULTIPLY, *path))
    return Path(where), backends, chosen, kernels, warned


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone has, or will have: everything that git does not ignore."""
    copy = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.split("\0"):
        if name and (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and a wheel that was built from that sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


def test_the_wheel_serves_every_python_and_holds_what_it_should(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    name, version, python_tag, abi, platform = wheel.stem.split("-")
    assert (name, python_tag, abi) == ("pyq_int8", "cp310", "abi3")
    assert platform.startswith("linux_")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {"pyq/_core.abi3.so", "pyq/py.typed", "pyq/kernels/__init__.py", "pyq/onnx/__init__.py"} <= files
    assert {f"pyq/kernels/{p.name}" for p in (ROOT / "kernels").glob("*.py")} <= files
    assert {f"{name}-{version}.dist-info/licenses/LICENSE", f"{name}-{version}.dist-info/entry_points.txt"} <= files
    assert not [f for f in files if f.split("/")[0] not in ("pyq", f"{name}-{version}.dist-info")]
    assert not [f for f in files if f.endswith((".c", ".h", ".def", ".pyc"))]


def test_the_sdist_holds_all_that_a_build_needs(dist: Path, source: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        files = {name.partition("/")[2] for name in content.getnames()}
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    for folder, suffix in (("csrc", "c"), ("csrc", "h"), ("csrc", "def"), ("kernels", "py"), ("pyq", "py")):
        needed |= {str(path.relative_to(source)) for path in (source / folder).rglob(f"*.{suffix}")}
    assert len(needed) > 50
    assert needed <= files


def test_the_wheel_works_where_it_is_installed(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "target"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    where, backends, chosen, kernels, warned = installed(tmp_path, target)
    assert where.is_relative_to(target)
    assert (backends, chosen, warned) == (["c", "numba", "reference"], "c", [])
    assert kernels
    python(tmp_path, "import pyq.kernels.registry, pyq.onnx, pyq.quantization, pyq.demo, pyq.cli", target)


def test_without_a_compiler_it_installs_and_says_so_once(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", target, source]
    run(*install, cwd=tmp_path, CC="/nonexistent/cc")
    assert not list(target.rglob("_core*"))
    where, backends, chosen, kernels, warned = installed(tmp_path, target)
    assert where.is_relative_to(target)
    assert (backends, chosen) == (["numba", "reference"], "numba")
    assert kernels and all(kernel.startswith("numba") for kernel in kernels)
    (message,) = warned
    assert "without its C kernels" in message and "'numba' backend" in message
    no_numba = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'numba' else find(n)"
    )
    assert '["reference"], "reference", []' in python(tmp_path, f"{no_numba}\n{MULTIPLY}", target)


def test_an_editable_install_follows_the_source(source: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    install = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--ignore-installed"]
    run(*install, "--prefix", prefix, "--editable", source, cwd=tmp_path)
    (site,) = prefix.glob("lib*/python*/site-packages")
    script = f"import site; site.addsitedir({str(site)!r})\n"
    shown = python(tmp_path, script + MULTIPLY + "import pyq.kernels; print(pyq.kernels.__file__)", site)
    assert f'"{source}/pyq/__init__.py", ["c", "numba", "reference"], "c"' in shown
    assert shown.splitlines()[-1] == f"{source}/kernels/__init__.py"
    assert (prefix / "bin" / "pyq").exists()
