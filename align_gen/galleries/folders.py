"""Which folder of a scores file is followed: one below the file's own."""

from pathlib import Path

from .table import ScoresTable


def followed_folder(file: str | Path, table: ScoresTable) -> str | None:
    """The gallery of a scores file, where it lies in the file's own folder; else None.

    The file may be a stranger's: a folder elsewhere would put private pictures of whoever reads
    the file into a page or a dataset. Links are followed before the two are compared.
    """
    if table.folder is None:
        return None
    home = Path(file).resolve().parent
    return table.folder if Path(table.folder).resolve().is_relative_to(home) else None


def load_followed(file: str | Path) -> ScoresTable:
    """A scores file whose pictures may be shown: without its folder where that is not followed."""
    table = ScoresTable.load(file)
    table.folder = followed_folder(file, table)
    return table
