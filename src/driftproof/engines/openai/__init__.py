"""Responses over HTTP: vLLM, SGLang, llama.cpp's server and whatever speaks OpenAI's completions API.

`wire` builds requests and checks replies, `probe` finds out what a server can do, `client` makes one call, `requests`
makes as many as a request needs, `pool` chooses among several servers, and `engine` is the engine.
"""
