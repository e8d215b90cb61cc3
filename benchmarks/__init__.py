"""Benchmarks: peers and Tunesmith in the same run, alternating; `python -m benchmarks [NAME …]` writes docs/performance.md."""
