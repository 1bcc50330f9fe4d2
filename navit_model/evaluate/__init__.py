"""Scores of a trained model: classification, retrieval, a cascade over token budgets, and their pictures.

Takes: a model and a held-out loader. Gives: rows of figures. May not know: how the model was trained.
"""
