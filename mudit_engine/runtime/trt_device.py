"""A CUDA stream with TensorRT engines on it: what runtime/trt_program.py launches on.

    device = CudaDevice(engines_folder, package="tensorrt")
    device.launch("step", 0, inputs, outputs)

Every engine has its execution contexts, one for each profile and set of input shapes, made when
they are first launched: a context whose shapes changed may not be captured before it ran once. All
contexts share one scratch memory, since they run one after the other.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mudit_engine.errors import MissingError, ModelError, MuditError
from mudit_engine.files import atomic_path
from mudit_engine.runtime.manifest import RUNTIME_CACHE

logger = logging.getLogger(__name__)


class RuntimeCache:
    """What TensorRT-RTX compiled for this machine's GPU, in a file beside the engines: the next
    process need not compile it again. A file that cannot be read or written costs time, no more.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._saved = path, -1
        self._cache: Any = None

    def give(self, config: Any) -> None:
        """Makes a runtime configuration compile into this cache, and read from it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            try:
                self._cache.deserialize(self.path.read_bytes())
            except FileNotFoundError:
                pass
            except (OSError, RuntimeError) as error:
                logger.warning("'%s' is not used: %s", self.path, error)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what was compiled since."""
        assert self._cache is not None
        data = bytes(memoryview(self._cache.serialize()))
        if len(data) == self._saved:
            return
        self._saved = len(data)
        try:
            with atomic_path(self.path) as aside:
                aside.write_bytes(data)
        except (OSError, MuditError) as error:
            logger.warning("'%s' is not kept: %s", self.path, error)


class CudaDevice:
    """Raises MissingError without an NVIDIA driver or the package, ModelError for an engine that
    does not open here.
    """

    def __init__(self, folder: Path, package: str, graphs: tuple[str, ...]) -> None:
        if not torch.cuda.is_available():
            raise MissingError(
                "runtime 'tensorrt' needs an NVIDIA GPU, its driver and a torch built for CUDA "
                "(torch.cuda.is_available() is False): "
                "use --runtime torch or onnxruntime on this machine"
            )
        self.trt: Any = importlib.import_module(package)
        self.stream = torch.cuda.Stream()
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))
        self.engines = {graph: self._open(folder / f"{graph}.engine") for graph in graphs}
        size = max(engine.device_memory_size_v2 for engine in self.engines.values())
        # never moved: captured launches hold its address
        self.scratch = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        self.contexts: dict[tuple[Any, ...], Any] = {}
        self.cache = RuntimeCache(folder / RUNTIME_CACHE) if package == "tensorrt_rtx" else None

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def run(self, work: Callable[[], object]) -> None:
        with torch.cuda.stream(self.stream):
            work()

    def launch(
        self, graph: str, profile: int, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
    ) -> None:
        """Raises ModelError when the engine refuses: shapes outside its profile, or another model's
        tensors.
        """
        context = self._context(graph, profile, inputs)
        for name, tensor in (*inputs.items(), *outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise ModelError(
                    f"engine '{graph}' has no tensor '{name}': it was built from another export"
                )
        if not context.execute_async_v3(self.stream.cuda_stream):
            raise ModelError(f"engine '{graph}' failed to launch with {_shapes(inputs)}")

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # makes all contexts and settles what a first launch defers
        self.wait()
        for key, context in self.contexts.items():  # TensorRT-RTX: a kernel may still be compiling
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(
                self.stream.cuda_stream
            ):
                raise ModelError(
                    f"engine '{key[0]}' cannot be captured in a CUDA graph with these shapes: "
                    f"build it with this version"
                )
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            work()

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def wait(self) -> None:
        self.stream.synchronize()

    def _context(self, graph: str, profile: int, inputs: Mapping[str, Tensor]) -> Any:
        key = (graph, profile, tuple(tuple(tensor.shape) for tensor in inputs.values()))
        if key in self.contexts:
            return self.contexts[key]
        engine = self.engines[graph]
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.cache is None:
            context = engine.create_execution_context(strategy)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # kernels for these very shapes before the first launch, which may be a capture's
            config.dynamic_shapes_kernel_specialization_strategy = (
                self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self.cache.give(config)
            context = engine.create_execution_context(config)
        context.set_device_memory(self.scratch.data_ptr(), self.scratch.numel())
        context.set_optimization_profile_async(profile, self.stream.cuda_stream)
        for name, tensor in inputs.items():
            if not tensor.is_contiguous():
                raise AssertionError(f"{graph}: {name} is not contiguous")
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ModelError(
                    f"engine '{graph}' does not take {name} of {tuple(tensor.shape)} in profile "
                    f"{profile}: build it again"
                )
        if missing := context.infer_shapes():
            raise ModelError(
                f"engine '{graph}' wants {', '.join(missing)}, which this version does not give: "
                f"export and build it again"
            )
        self.contexts[key] = context
        if self.cache is not None:
            self.cache.save()
        return context

    def _open(self, path: Path) -> Any:
        if not path.is_file():
            raise ModelError(f"no engine '{path}': build it with `mudit export tensorrt`")
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelError(
                f"engine '{path}' does not open on {torch.cuda.get_device_name()} with "
                f"{self.trt.__name__} {self.trt.__version__}: "
                "build it on this machine with `mudit export tensorrt`"
            )
        return engine


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
