"""What a file is known by."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal digits, to name a checkpoint beyond doubt."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
