"""Options out of a folder of files, one each, as containers and service managers hand secrets to a process."""

import os
from pathlib import Path

from pydantic_settings import BaseSettings, SecretsSettingsSource

from parshall.kernel.errors import StartupError

FOLDER_VARIABLE = "PARSHALL_SECRETS_DIR"


def secrets_folder() -> Path | None:
    """The folder that PARSHALL_SECRETS_DIR names, if it names any. Raises StartupError where that is none."""
    named = os.environ.get(FOLDER_VARIABLE)
    if not named:
        return None
    if not Path(named).is_dir():
        raise StartupError(f"{FOLDER_VARIABLE} names {named}, which is not a folder; correct or unset it.")
    return Path(named)


def secret_names(prefix: str) -> list[str]:
    """The files of that folder that are named as an option is: `parshall_service_secret` is PARSHALL_SERVICE_SECRET."""
    folder = secrets_folder()
    if folder is None:
        return []
    return sorted(file.name.upper() for file in folder.iterdir() if file.name.upper().startswith(prefix))


def secrets_of(settings: type[BaseSettings]) -> list[SecretsSettingsSource]:
    """The source that reads the folder, where there is one."""
    folder = secrets_folder()
    return [] if folder is None else [SecretsSettingsSource(settings, secrets_dir=folder)]
