"""Evaluations of a project: models and rows from words, answers kept, comparisons, findings, reports. Knows no formula."""
