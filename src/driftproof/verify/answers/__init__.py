r"""All that is done around Math-Verify: where a response says its answer, and what counts as equal to the gold one.

In reading order: `extract` finds the final answer, `notation` and `spelling` write it in one way, `forms` reads what
kind of answer it is (with `splitting`, `intervals`, `units` and `numbers`), `equality` compares two of them, and
`expressions` asks Math-Verify. Only the last needs it.
"""
