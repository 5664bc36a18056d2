"""Kinds of pictures and videos that are read, and the error for a file that cannot be read."""

# Suffix -> the only decoder that is tried.
PICTURES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
}
FORMATS = tuple(set(PICTURES.values()))
VIDEOS = (".mp4",)
MEDIA = (*PICTURES, *VIDEOS)  # suffixes of files that are read
MAX_BYTES = 2**28  # of one picture or video, encoded
MAX_TEXT = 2**20  # bytes of a text beside a picture


class UnreadablePicture(Exception):
    """A picture or video that cannot be read; the message is the reason, without the path."""


class OutOfMemory(UnreadablePicture):
    """A picture that cannot be read while so little memory is free."""

    def __init__(self) -> None:
        super().__init__("needs more memory than there is")


def suffix_of(content: bytes) -> str:
    """The suffix of media without a name, by the first bytes; .png where these are unknown."""
    if content[4:8] == b"ftyp":
        return ".mp4"
    if content[:3] == b"\xff\xd8\xff":
        return ".jpg"
    return ".webp" if content[8:12] == b"WEBP" else ".png"
