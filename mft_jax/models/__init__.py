"""The frozen base, its adapters and its tokenizer.

Shape letters of the einsums, annotations and comments of the project (a module that uses one for something else says so):
A agents, B rows (batch), T tokens (time), S cache length, L layers, D embed, N query heads, K kv heads, H head dim,
F ffw, V vocab, R LoRA rank.
"""
