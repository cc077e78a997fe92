"""Options for the predictions of a trained model, given as --set=KEY=VALUE."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launch.engine import config as configs
from launch.engine import values as typed
from launch.engine.config import Experiment
from tasks.common.errors import UserError

# Keys that a prediction may override.
_FREE = re.compile(r"model\.decoding\..+|model\.max_new_tokens|training\.evaluation_batch_size")


def with_options(config: Experiment, settings: Sequence[str]) -> Experiment:
    """Returns an experiment whose decoding options are changed; other keys raise an error.

    Args:
      config: experiment of a run.
      settings: values of --set, "key=value" each.

    Raises:
      UserError: a setting is not key=value, is not a decoding option, or has an invalid value.
    """
    values = configs.to_dict(config)
    known = [key for key in configs.flatten(values) if _FREE.fullmatch(key)]
    changes = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.removeprefix("config.")
        if key not in known:
            fixed = key in configs.flatten(values)
            near = configs.did_you_mean(key, known)
            reason = "is fixed by the training" if fixed else f"no such key{near}"
            there_are = ", ".join(known) or "none for this model"
            raise UserError(
                f"--set={setting}: {key}: {reason}; keys that can be set here: {there_are}"
            )
        if not equals:
            raise UserError(f"--set={setting}: has no value; write --set={key}=VALUE")
        changes[key] = typed.parse(values, key, value)
    return configs.override(config, changes) if changes else config
