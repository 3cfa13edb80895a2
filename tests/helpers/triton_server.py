"""A real tritonserver on free ports: the one that the package nvidia-pytriton bundles.

MUDIT_TRITON_ENV names an environment with nvidia-pytriton and numpy < 2 (`make triton` makes it):
the bundled server's Python stub reads numpy's old layout.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def packages() -> Path | None:
    """site-packages of the environment with the server, or None."""
    name = os.environ.get("MUDIT_TRITON_ENV")
    folder = Path(name or ".") / "lib" / f"python{PYTHON}" / "site-packages"
    return folder if name and (folder / "pytriton" / "tritonserver").is_dir() else None


class TritonServer:
    """Serves a model repository until `stop`."""

    def __init__(self, models: Path, log: Path) -> None:
        found = packages()
        assert found is not None
        home = found / "pytriton" / "tritonserver"
        backends = self._backends(home, log.parent)
        ports = [self._free() for _ in range(3)]
        self.url, self.grpc = f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
        libraries = [found / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": f"{self._python(found, log.parent)}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        arguments = ["--model-repository", str(models), "--backend-directory", str(backends)]
        arguments += ["--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
        arguments += ["--metrics-port", str(ports[2]), "--http-address", "127.0.0.1"]
        arguments += ["--grpc-address", "127.0.0.1", "--metrics-address", "127.0.0.1"]
        self.log = log.open("wb")
        self.process = subprocess.Popen(
            [str(home / "bin" / "tritonserver"), *arguments],
            env=environment,
            stdout=self.log,
            stderr=self.log,
        )
        deadline = time.monotonic() + 180
        while True:
            try:
                if httpx.get(f"{self.url}/v2/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)

    def stop(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        self.log.close()
        return code

    def _python(self, found: Path, scratch: Path) -> Path:
        """bin of an environment with the old numpy, this checkout, and then all that is here: the
        stub looks for its packages where python3 on the PATH has them, and nowhere else.
        """
        home = scratch / "environment"
        site = home / "lib" / f"python{PYTHON}" / "site-packages"
        site.mkdir(parents=True)
        for name in ("numpy", "numpy.libs"):
            (site / name).symlink_to(found / name)
        (site / "own.pth").write_text(f"{ROOT}\n{sysconfig.get_paths()['purelib']}\n")
        (home / "bin").mkdir()
        real = Path(sys._base_executable)  # type: ignore[attr-defined]
        for name in ("python", "python3"):
            (home / "bin" / name).symlink_to(real)
        (home / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
        return home / "bin"

    def _backends(self, home: Path, scratch: Path) -> Path:
        """The Python backend with the stub of this Python beside it."""
        folder = scratch / "backends" / "python"
        folder.mkdir(parents=True)
        for file in (home / "backends" / "python").iterdir():
            (folder / file.name).symlink_to(file)
        stub = home / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
        (folder / stub.name).unlink(missing_ok=True)
        (folder / stub.name).symlink_to(stub)
        return folder.parent

    def _free(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as one:
            return int(one.getsockname()[1])
