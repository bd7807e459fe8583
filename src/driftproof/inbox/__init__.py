"""The inbox: a small HTTP service beside a learner, by which any process becomes a rollout worker."""
