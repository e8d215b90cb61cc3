"""Which way to a good answer is worth its price: prompt, shots, retrieval, fine-tuning or a larger model; knows no model and no file.

What the room needs (models, rows, metrics, training) is handed in; `flow` joins them.
"""
