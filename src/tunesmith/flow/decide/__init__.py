"""The experiment of `tunesmith decide`, joined of rooms."""
