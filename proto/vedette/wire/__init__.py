"""What travels between agents, controller and admins: generated messages in ``v1``, plain values, one translator."""
