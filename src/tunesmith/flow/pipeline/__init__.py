"""The stages of one project: context, runner, and a file for each stage."""
