"""Read what users bring: CSV, TSV, JSON, Parquet, folders, data sets of the hub; as written.

:func:`read_rows` streams the rows of a file with their numbers, :func:`read_columns` reads the
names of its columns, and :func:`open_texts` checks one column before anything is computed. Nothing
infers a type, and a file that can be read in two ways is refused. Plugins may import this package.
"""

from trunkline.data.readers.dataset_rows import (
    is_dataset,
    is_hub,
    is_in_cache,
    split_path,
    splits_of,
)
from trunkline.data.readers.files import (
    FORMATS,
    TextFile,
    TextRow,
    digest_of,
    embeds_pictures,
    holds_lists,
    holds_split,
    open_texts,
    read_columns,
    read_rows,
)
from trunkline.data.readers.image_folder import LABELS, PictureFolder, find_pictures, holds_pictures
from trunkline.data.readers.json_rows import unique_keys
from trunkline.data.readers.rows import EmbeddedPicture, FileOptions, FileRow
from trunkline.data.readers.text import decode_text, read_entries

__all__ = [
    "FORMATS",
    "LABELS",
    "EmbeddedPicture",
    "FileOptions",
    "FileRow",
    "PictureFolder",
    "TextFile",
    "TextRow",
    "decode_text",
    "digest_of",
    "embeds_pictures",
    "find_pictures",
    "holds_lists",
    "holds_pictures",
    "holds_split",
    "is_dataset",
    "is_hub",
    "is_in_cache",
    "open_texts",
    "read_columns",
    "read_entries",
    "read_rows",
    "split_path",
    "splits_of",
    "unique_keys",
]
