"""How large what clients send may be, in bytes; knows nothing about who checks it."""

MAX_FILE_BYTES = 512 << 20
MAX_PART_BYTES = 64 << 20
