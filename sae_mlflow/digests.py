"""What a file's bytes are, in a few characters."""

import hashlib
from pathlib import Path


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
