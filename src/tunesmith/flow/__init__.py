"""The only place where rooms meet: the circle, its stages, its report. Knows nothing about HTTP or the command line."""
