"""Download of models from the Hugging Face Hub by the huggingface_hub library."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.common.errors import UserError

# "bert-base-uncased" or "google-bert/bert-base-uncased".
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Files that suffice for `tasks.common.huggingface.files.read_folder`.
_WANTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES = (
    *_WANTED,
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def is_name(text: str) -> bool:
    """Returns True if a text has the form of the names of models on the Hub: NAME or OWNER/NAME."""
    return _NAME.fullmatch(text) is not None


def download(name: str) -> Path:
    """Downloads a model, unless it is in the cache of the library, and returns its folder.

    The environment variables of the library apply, such as HF_HOME, HF_HUB_OFFLINE and HF_TOKEN.

    Args:
      name: name of the model, such as "bert-base-uncased".

    Raises:
      UserError: there is no such model, or the Hub cannot be reached. In the second case the
        message contains a command that downloads the files on another machine.
    """
    import huggingface_hub
    from huggingface_hub import errors

    folder = name.rpartition("/")[2]
    elsewhere = (
        f"on a machine with a network, run: pip install huggingface_hub; "
        f"hf download {name} {' '.join(_WANTED)} --local-dir {folder}; then give --from={folder}"
    )
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except errors.RepositoryNotFoundError:
        reason = "Hugging Face has no such model, or it is private (set HF_TOKEN)"
        raise UserError(f"--from={name}: no such directory, and {reason}") from None
    # Without a network the library raises its own error; if the download is interrupted, its HTTP
    # client raises another one.
    except Exception:
        raise UserError(
            f"--from={name}: no such directory, and Hugging Face cannot be reached; {elsewhere}"
        ) from None
