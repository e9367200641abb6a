"""Loading by ``datasets``: folders of images and sounds, also without what it decodes sounds with."""

import inspect
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DEFAULT_PATTERNS_ALL, get_data_patterns
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

__all__ = ["load_dataset"]


class _SoundFile(datasets.Audio):  # type: ignore[misc]
    """A column of sound files. That of ``datasets`` asks for torchcodec even to write down a path."""

    def encode_example(self, value: str) -> dict[str, Any]:
        """The file as a row of the table has it."""
        return {"bytes": None, "path": value}


def load_dataset(arguments: dict[str, Any]) -> Any:
    """As ``datasets.load_dataset``, from its arguments; a folder without names of splits in it is one table."""
    arguments = dict(arguments)
    folder = Path(arguments["path"]).is_dir()
    if folder and arguments.keys() == {"path"} and get_data_patterns(arguments["path"]) == DEFAULT_PATTERNS_ALL:
        arguments["split"] = "train"  # what datasets calls all files there are
    if folder or arguments["path"] == "audiofolder":
        of_builders = inspect.signature(datasets.load_dataset_builder).parameters
        others = inspect.signature(datasets.load_dataset).parameters.keys() - of_builders.keys()
        builder = datasets.load_dataset_builder(**{key: arguments[key] for key in arguments.keys() - others})
        if isinstance(builder, AudioFolder):
            builder.BASE_FEATURE = _SoundFile
            builder.download_and_prepare()
            return builder.as_dataset(arguments.get("split"))
    return datasets.load_dataset(**arguments)
