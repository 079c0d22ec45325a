"""What is told to people and to what watches the agent."""
