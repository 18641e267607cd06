"""Import hook: declares torchvision's missing operators just before torchvision is imported.

`scripts/repair_cpu.py` copies this file into an environment's site-packages, with a `.pth` file that imports it in every process: driver,
Ray workers, vLLM's engine and worker, Serve replicas. It is for environments where torch is a CPU build and torchvision is not:
torchvision's compiled part cannot load there, and its Python part then fails on `operator torchvision::nms does not exist`. Only the
schemas are declared: the Python transforms work, the operators themselves still say that they have no kernel.

A process that never imports torchvision pays one name comparison an import, and torch is not loaded for it.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

# As in torchvision 0.28, torchvision/csrc/ops/nms.cpp and .../quantized/cpu/qnms_kernel.cpp.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_kept_alive: list[Any] = []  # the declarations go when the Library object goes


class _DeclaringLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        import torch

        if not _kept_alive:
            library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                library.define(schema)
            _kept_alive.append(library)
        super().exec_module(module)


class _TorchvisionFinder:
    # Looking for the package (find_spec) must not import torch: transformers and vLLM ask for it early. Only running it does.
    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _DeclaringLoader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _TorchvisionFinder)  # type: ignore[arg-type]  # a class with a static find_spec is a finder
