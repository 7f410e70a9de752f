"""Where files of settings are found: ours, those in a folder of the user's own, and any file by its path.

The folder of one's own is laid out as ours are, `configs/` and `eval/` in one:

    experiment/, data/, model/, plan/, ...    groups, as in configs/
    suites/, tables/                          as in eval/

Its files go before ours of the same name. An environment variable names it, so that processes that a command starts
find it too; `voco-llama --config-dir FOLDER` sets the variable for one command.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voco_llama.errors import SettingsError, did_you_mean, require

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Inside the package in an installed wheel, beside it in a checkout."""
EVAL_DIR = CONFIG_DIR.with_name("eval")
"""Tables, suites and tasks; beside the configurations in both."""
VARIABLE = "VOCO_CONFIGS"
GLOBAL_GROUPS = ("experiment", "hardware", "plan")
"""Groups whose files hold keys of the top, with or without Hydra's line `# @package _global_`."""
YAML = ".yaml"
_EXPLICIT = ("/", "./", "../", "~/")


def own_folder() -> Path | None:
    """The folder of one's own.

    Raises:
        SettingsError: One is named that is no folder.
    """
    if not (named := os.environ.get(VARIABLE)):
        return None
    folder = Path(named).expanduser().resolve()
    require(folder.is_dir(), f"{named} is no folder: name one that is, with --config-dir or in {VARIABLE}")
    return folder


@contextmanager
def using_folder(folder: str | None) -> Iterator[None]:
    """Within it, and in processes started within it, this is the folder of one's own; None leaves the one that is."""
    before = os.environ.get(VARIABLE)
    if folder is not None:
        os.environ[VARIABLE] = str(Path(folder).expanduser().resolve())
    try:
        own_folder()
        yield
    finally:
        if folder is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def config_roots() -> list[Path]:
    """Folders that groups are looked for in, the first one first."""
    own = own_folder()
    return [CONFIG_DIR] if own is None else [own, CONFIG_DIR]


def is_group(name: str) -> bool:
    """Whether settings of this name are chosen by the name of a file."""
    return any((root / name).is_dir() for root in config_roots())


def group_file(group: str, choice: str) -> Path | None:
    """The file of a choice, if there is one."""
    return next((file for root in config_roots() if (file := root / group / f"{choice}{YAML}").is_file()), None)


def choices_of(group: str) -> list[str]:
    """Every choice of a group, sorted."""
    folders = [root / group for root in config_roots()]
    files = [(folder, file) for folder in folders for file in folder.glob(f"**/*{YAML}")]
    return sorted({file.relative_to(folder).with_suffix("").as_posix() for folder, file in files})


def file_by_path(group: str, choice: str) -> Path | None:
    """The file that is meant where a choice is the path of a file; None where it is a name.

    A path begins with `/`, `./`, `../` or `~/`, or ends with `.yaml` and is no choice's name.

    Raises:
        SettingsError: It can only be a path, and there is no such file.
    """
    explicit, path = choice.startswith(_EXPLICIT), Path(choice).expanduser()
    if not explicit and (path.suffix != YAML or group_file(group, choice.removesuffix(YAML))):
        return None
    for file in (path, path.with_name(f"{path.name}{YAML}")) if path.name else ():
        if file.suffix == YAML and file.is_file():
            return file
    require(not explicit, f"{group}: there is no file {choice} (from {Path.cwd()}): name one that ends with {YAML}")
    return None


def hydra_choice(group: str, file: Path) -> str:
    """Any file as a choice of a group: its path from the group's folder, which Hydra follows wherever it leads."""
    return os.path.relpath(file.resolve(), config_roots()[0] / group).removesuffix(YAML)


def eval_file(kind: str, name: str, folder: Path) -> Path:
    """The file of a suite or a table.

    Args:
        kind: `suite` or `table`; the folder of one's own has them in `suites/` and `tables/`.
        name: Of a file, without its ending, or the path of one.
        folder: Of ours.

    Raises:
        SettingsError: There is none.
    """
    own = own_folder()
    folders = [folder] if own is None else [own / f"{kind}s", folder]
    if found := next((file for one in folders if (file := one / f"{name}{YAML}").is_file()), None):
        return found
    path = Path(name).expanduser()
    if path.suffix == YAML and path.is_file():
        return path
    known = sorted({file.stem for one in folders for file in one.glob(f"*{YAML}")})
    raise SettingsError(
        f"there is no {kind} {name!r}{did_you_mean(name, known)}: choose from {', '.join(known)}, or give the path of a"
        f" {YAML}"
    )
