"""The appliance's side: collects flows, runs models in worker processes, keeps serving without a controller."""
