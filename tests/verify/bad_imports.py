"""A verifier that cannot be imported, in the way the environment variable says."""

import os
import time

if os.environ["BAD_IMPORT"] == "hang":
    time.sleep(1000)
if os.environ["BAD_IMPORT"] == "exit":
    os._exit(7)
raise RuntimeError("no licence found")
