"""The frozen base, its adapters and its tokenizer.

Shape letters, the same in every einsum, annotation and comment of the project:
A agents, B rows (batch), T tokens (time), S cache length, L layers, D embed, N query heads, K kv heads, H head dim,
F ffw, V vocab, R LoRA rank.
"""
