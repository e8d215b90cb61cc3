"""Everything that can answer, behind one protocol, and the catalogue of where it comes from. Knows nothing about what is asked."""
