"""Attention for short sequences of visible tokens, and the choice of who computes it."""

from mmssl_kernels.attention.calls import attention, attention_qkvpacked, attention_weights, explain_attention
from mmssl_kernels.attention.choice import Explanation
from mmssl_kernels.attention.problem import Window

__all__ = ["Explanation", "Window", "attention", "attention_qkvpacked", "attention_weights", "explain_attention"]
