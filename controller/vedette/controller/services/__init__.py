"""What the controller does for its callers: stores, jobs and decisions put together, one module a concern."""
