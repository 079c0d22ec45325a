"""The central side: trains, registers, signs and rolls out models, and stores what agents report."""
