"""Everything that can answer, behind one protocol, and the catalogue of where it comes from. Knows nothing about what is asked."""

from tunesmith.core.memory import keep_few_kernels

keep_few_kernels()  # before anything here multiplies
