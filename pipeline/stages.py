"""Training stages: values, their schedule, and the ramp that makes one from ranges."""
