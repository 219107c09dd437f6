"""What a file is, by its first bytes; a name only rules out what is surely no picture."""

import os

HEAD_BYTES = 64
"""Number of first bytes that `sniff` needs."""

READ = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".jps"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif", ".heics", ".heifs", ".hif"),
    "JXL": (".jxl",),
}
"""Formats that are read (Pillow's names) and their suffixes."""
_UNREAD = (
    ".svg .svgz .psd .psb .ico .cur .tga .eps .ps .ai .raw .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .orf .rw2 .raf "
    ".pef .x3f .exr .hdr .pcx .xcf .icns .dds .wmf .emf .qoi .jxr .wdp .hdp .fits .xpm .xbm .pict .bpg .flif"
).split()
SUFFIXES = frozenset((*(suffix for names in READ.values() for suffix in names), *_UNREAD))
"""Suffixes of pictures, read or not; they are not part of an id."""

_FOREIGN = frozenset(
    (
        ".csv .tsv .json .jsonl .ndjson .parquet .arrow .feather .orc .xml .html .htm .xhtml .css .js .ts .md .rst "
        ".txt .text .log .yaml .yml .toml .ini .cfg .conf .py .pyc .ipynb .sh .bat .cmd .ps1 .r .c .h .cpp .java "
        ".tex .bib .rtf .pdf .doc .docx .xls .xlsx .ods .odt .ppt .pptx .pages .numbers .key .db .sqlite .sqlite3 "
        ".lmdb .mdb .pkl .pickle .npy .npz .pt .pth .ckpt .bin .safetensors .onnx .h5 .hdf5 .mat .faiss .idx .index "
        ".tar .tgz .zip .gz .bz2 .xz .zst .7z .rar .iso .dmg .exe .dll .so .jar .whl .mp4 .m4v .mov .avi .mkv .webm "
        ".mpg .mpeg .wmv .flv .3gp .mts .gifv .mp3 .m4a .wav .flac .ogg .aac .srt .vtt .xmp .aae .thm .pp3 .dop "
        ".lnk .url .webloc .torrent .part .crdownload .tmp .temp .bak .swp .lock .md5 .sha1 .sha256 .asc .sig "
        ".ds_store .plist .dat .eml .ics .vcf .geojson .kml .gpx "
    ).split()
)
_FOREIGN_NAMES = frozenset(
    "thumbs.db ehthumbs.db desktop.ini icon\r readme license licence copying notice authors changelog makefile "
    "dockerfile citation".split(" ")
)
_SYSTEM_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"), (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
)  # fmt: skip
_STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; run `git lfs pull`"),
    (b"%PDF", "a PDF document"), (b"8BPS", "a Photoshop document"), (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "gzip-compressed"), (b"\0\0\1\0", "an icon"), (b"%!PS", "PostScript"), (b"<svg", "an SVG drawing"),
    (b"\0\5\x16\7", "macOS's notes on another file (AppleDouble)"), (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"), (b"<?xml", "an XML or SVG document"), (b"{", "JSON or other text"),
)  # fmt: skip


def sniff(head: bytes) -> str:
    """Format of a picture by its first bytes, a key of `READ`; empty when they belong to none."""
    for start, kind in _SIGNATURES:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if (
        len(head) > 3
        and head[:1] == b"P"
        and head[1:2] in b"123456"
        and head[2:3].isspace()
        and head[3:4] in b"#0123456789"
    ):
        return "PPM"
    return _by_brand(head)


def stranger(head: bytes) -> str:
    """What a file is that is no picture, in words; empty when that is not known."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, words in _STRANGERS:
        if start.lower().startswith(mark) or head.startswith(mark):
            return words
    return "a video" if head[4:8] == b"ftyp" else ""


def split_suffix(name: str) -> tuple[str, str]:
    """A name without its picture suffix, and that suffix as written; empty where it has none (`22.05` has none)."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def is_foreign(name: str) -> bool:
    """Whether a file's name alone says that it is no picture: hidden, a system's own file, a table, a text, a video."""
    low = name.lower()
    suffix = os.path.splitext(low)[1]
    return low.startswith((".", "~$")) or suffix in _FOREIGN or low in _FOREIGN_NAMES


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden or a system's own (`__MACOSX`, `@eaDir`)."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def _by_brand(head: bytes) -> str:
    """AVIF and HEIF are told apart by the brands of their first box."""
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end, 4))]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIF" if any(brand in _HEIF_BRANDS for brand in brands) else ""
