"""Responses over HTTP: vLLM, SGLang, llama.cpp's server and whatever speaks OpenAI's completions API.

`wire` builds requests and checks replies, `probe` finds out what a server can do, `client` is the engine.
"""
