"""Models in processes of their own: the ring, the worker on both sides, who keeps it answering, and the slots."""
