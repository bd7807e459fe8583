"""Tiny base policies, made on this machine."""
