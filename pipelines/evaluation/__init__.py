"""Evaluation: robustness, consistency, adversaries, calibration, OOD detection."""
