"""Models on the Hugging Face Hub, fetched with its own library, which is an extra."""

import re
from pathlib import Path

from tarflow_jax.errors import InputError
from tarflow_jax.sharing.pretrained import CARD_FILE, WEIGHTS_FILE
from tarflow_jax.workdir import CONFIG_FILE

FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)  # nothing else of a repository is fetched
_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


def is_name(text) -> bool:
    """Whether a text can be the name of a repository, `owner/name`."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def fetch(name: str, revision: str | None = None) -> Path:
    """Returns the folder of a repository, from the library's cache or else downloaded.

    Args:
      name: `owner/name`.
      revision: a branch, a tag or a commit; by default the main branch, as it was when it was
        fetched first.

    Raises:
      InputError: the library is not installed, or there is no such repository within reach.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f'There is no folder {name}. To look for it on the Hugging Face Hub: pip install '
            "'tarflow_jax[hub]'."
        ) from error

    def folder(**where) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(FILES), **where
            )
        )

    try:
        cached = folder(local_files_only=True)
        if (cached / WEIGHTS_FILE).is_file():
            return cached
    except Exception:  # not in the cache, for which the library raises many kinds of errors
        pass
    try:
        return folder()
    except Exception as error:  # of the library, of its client, of the network
        reason = str(error).strip().partition('\n')[0].rstrip('.')
        raise InputError(
            f'{name} is neither a local folder nor a model that was found on the Hugging Face Hub: '
            f'{reason}. Is the name right, and is there a network?'
        ) from error
