"""What a network is worth besides its accuracy: robustness, consistency, calibration, anomalies."""
