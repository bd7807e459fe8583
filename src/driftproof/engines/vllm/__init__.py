"""vLLM that follows the learner's weights, on this machine.

`launch` starts and stops a server, `updater` brings snapshots to it and checks that they arrived. `plugin` and
`transfer` run inside vLLM's own processes and import nothing that its environment lacks.
"""

BACKEND = "driftproof"
"""Name of our weight-transfer engine in `--weight-transfer-config '{"backend": ...}'`."""
