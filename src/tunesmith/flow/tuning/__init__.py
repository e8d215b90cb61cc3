"""A study joined from its rooms: the same training and the same evaluation as a run, for many plans."""
