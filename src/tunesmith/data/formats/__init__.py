"""The formats that rows come and go in, one record a format in one file each; `registry` lists them. Knows nothing about files."""
