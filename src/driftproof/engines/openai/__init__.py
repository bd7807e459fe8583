"""Responses over HTTP: vLLM, SGLang, llama.cpp's server and whatever speaks OpenAI's completions API.

`wire` builds requests and checks replies, `probe` finds out what a server can do, `pool` chooses among several servers,
`requests` makes as many calls as a request needs, and `engine` is the engine.
"""
