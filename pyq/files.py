"""Write files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename it; on an error `path` is as it was.

    OSError when the folder does not exist or cannot be written to.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
