"""Help pages of config files and ablation files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.engine import config as configs
from launch.engine.help import config_page
from launch.runs import ablation as ablations


def help_page(
    specification: str, original: Mapping[str, Any] | None, values: Mapping[str, Any] | None
) -> str:
    """Returns the help page of a config file or an ablation file.

    Args:
      specification: value of --config.
      original: nested mapping of the experiment; None for an ablation file.
      values: nested mapping of the experiment with the overrides.

    Raises:
      UserError: the file cannot be read.
    """
    if original is not None and values is not None:
        return config_page(specification, values, original, "--config.")
    found = ablations.load_ablations(specification)
    if len(found) > 1:
        groups = ["\n".join([f"{name}:", *_experiments(each)]) for name, each in found.items()]
        return "\n\n".join([specification, *groups])
    (ablation,) = found.values()
    base = configs.load_values(ablation.base)
    changed = configs.to_dict(configs.override(configs.resolve(base), ablation.overrides))
    page = config_page(ablation.base, changed, base, "--set=")
    return "\n".join([specification, "", *_experiments(ablation), "", f"Base: {page}"])


def _experiments(ablation: ablations.Ablation) -> list[str]:
    lines = [f"{ablation.base_name}: the base experiment, {ablation.base}"]
    for name, delta in ablation.deltas.items():
        changes = [f"{key}={value!r}" for key, value in delta.overrides.items()]
        lines.append(f"{name}: {', '.join([*filter(None, [delta.config]), *changes])}")
    return [*lines, f"{ablation.seeds} seeds; --seeds=N overrides the number"]
