"""The inbox: a small HTTP service beside a learner, by which any process becomes a rollout worker."""

from driftproof.inbox.service import Inbox, StaleInboxError

__all__ = ["Inbox", "StaleInboxError"]
