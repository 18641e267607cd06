"""The official UniFormerV2 and InternVideo2, from checkouts of their repositories; none of their code is here.

    git clone https://github.com/OpenGVLab/UniFormerV2 CHECKOUTS/UniFormerV2
    git clone --filter=blob:none https://github.com/OpenGVLab/InternVideo CHECKOUTS/InternVideo

They import timm, a logger and flash_attn at the top. None is needed for what is compared, so stand-ins are imported in their place while
the two files are loaded: without flash_attn InternVideo2 runs its plain path (`use_flash_attn=False, use_fused_rmsnorm=False,
use_fused_mlp=False`; `Attention._naive_attn`), which is the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from torch import nn

UNIFORMERV2_FILE = "UniFormerV2/slowfast/models/uniformerv2_model.py"
INTERNVIDEO2_FOLDER = "InternVideo/InternVideo2/single_modality/models"
PLAIN = {"use_flash_attn": False, "use_fused_rmsnorm": False, "use_fused_mlp": False}


class _NoDropPath(nn.Module):
    """Stands in for timm's, which the comparisons do not use: all rates are 0."""

    def __init__(self, rate: float) -> None:
        raise AssertionError(f"drop path {rate} in a comparison")


@contextmanager
def _stand_ins() -> Iterator[None]:
    layers = {"DropPath": _NoDropPath, "to_2tuple": _pair, "trunc_normal_": nn.init.trunc_normal_}
    modules: dict[str, dict[str, Any]] = {
        **{name: {} for name in ("timm", "timm.models", "slowfast", "slowfast.utils", "flash_attn", "flash_attn.modules")},
        **{"flash_attn.ops": {}, "timm.models.layers": layers, "timm.models.registry": {"register_model": lambda function: function}},
        "slowfast.utils.logging": {"get_logger": lambda _: mock.Mock()},
        "flash_attn.modules.mlp": {"FusedMLP": None},
        "flash_attn.ops.rms_norm": {"DropoutAddRMSNorm": None},
        "flash_attn.flash_attn_interface": {"flash_attn_varlen_qkvpacked_func": None},
        "flash_attn.bert_padding": {"unpad_input": None, "pad_input": None},
    }
    made = {}
    for name, content in modules.items():
        made[name] = ModuleType(name)
        vars(made[name]).update(content)
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    with mock.patch.dict(sys.modules, made), mock.patch("builtins.print"):
        yield


def _pair(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


def missing(checkouts: Path) -> list[Path]:
    """What of the official code is not below `checkouts`."""
    return [path for path in (checkouts / UNIFORMERV2_FILE, checkouts / INTERNVIDEO2_FOLDER / "internvideo2.py") if not path.is_file()]


def uniformerv2(checkouts: Path, **settings: Any) -> nn.Module:
    """Their `VisionTransformer(**settings)`; it takes [B, 3, T, height, width]."""
    with _stand_ins():
        spec = importlib.util.spec_from_file_location("official_uniformerv2", checkouts / UNIFORMERV2_FILE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: nn.Module = module.VisionTransformer(output_dim=0, **settings)
    return model


def internvideo2(checkouts: Path, file: str = "internvideo2", **settings: Any) -> nn.Module:
    """Their `InternVideo2(**settings)` of `file` (internvideo2, internvideo2_cat, internvideo2_ap); it takes [B, 3, T, height, width]."""
    package = ModuleType("official_internvideo2")
    package.__path__ = [str(checkouts / INTERNVIDEO2_FOLDER)]
    with _stand_ins(), mock.patch.dict(sys.modules, {"official_internvideo2": package}):
        module = importlib.import_module(f"official_internvideo2.{file}")
        model: nn.Module = module.InternVideo2(**PLAIN, **settings)
    return model
