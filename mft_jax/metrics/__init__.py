"""Accuracy, paired tests, diversity, FLOPs and costs."""
