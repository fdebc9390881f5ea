"""Paged KV cache, batching, sampling, tokenizer, chat: from prompts to text.

Never imports the compiler side.
"""
