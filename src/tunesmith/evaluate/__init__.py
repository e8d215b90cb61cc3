"""Evaluation: is it better, by how much, how sure, and what broke?"""
