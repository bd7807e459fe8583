"""Writers of responses: the Engine protocol and its implementations, each imported from its own module."""
