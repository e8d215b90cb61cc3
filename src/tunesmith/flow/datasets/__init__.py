"""Data sets of a project at work: versions, checks, people's work, the data stages of the circle. Knows no rule of cleaning."""
