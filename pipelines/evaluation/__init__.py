"""Evaluation: robustness, consistency, adversaries, calibration, anomaly detection."""
