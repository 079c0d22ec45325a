"""What holds for every test."""

import os

# Before anything imports onnxruntime: it keeps an event database in the home folder and may upload it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
