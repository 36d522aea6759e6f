"""Datasets for the operator: where each is, what keeps pods from its cache, whose node is busy."""
