"""What holds for every test."""

import os

from hypothesis import HealthCheck, settings

# Before anything imports onnxruntime: it keeps an event database in the home folder and may upload it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Properties are about values, not about how long a busy machine takes to draw or check one.
settings.register_profile("vedette", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vedette")
