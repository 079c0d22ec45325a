"""What joins this appliance to its controller: identity, link, downloads, telemetry, and what travels in files."""
