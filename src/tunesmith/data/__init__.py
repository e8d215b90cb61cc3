"""Data that can be trusted: import, cleaning, near-duplicates, personal data, labels, splits, with a fate for every row."""
