"""Limits of what travels; both sides check them before they read on."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of any message, either way; grpc refuses a larger one with RESOURCE_EXHAUSTED."""

CHUNK_BYTES = 256 * 1024
"""Of one piece of a streamed file. Larger chunks gained nothing on loopback and cost memory per peer."""

DOWNLOAD_CHUNK_BYTES = 32 * 1024
"""Of one piece of a blob on its way to an agent: what a cut costs, a second of a line of 256 kbit/s."""

MAX_SLOTS = 16
"""Of one agent."""

MAX_WINDOWS_PER_BATCH = 64
"""Telemetry windows in one batch."""

MAX_GAPS_PER_BATCH = 64
"""Gaps that one batch tells."""

MAX_PROFILE_BYTES = 256 * 1024
"""Of one encoded data profile; 75 features of 32 bins take about 20 kB."""

MAX_DOCUMENT_BYTES = 1024 * 1024
"""Of one signed document in its envelope."""

SCHEMA_CHARACTERS = 1 << 18
"""Of what is said beside a model's file about the rows it reads: a thousand labels of 128 characters, and some."""
