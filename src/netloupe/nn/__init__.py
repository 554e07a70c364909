"""Building blocks: plain ``torch.nn.Module`` layers that change which features a network learns."""

from netloupe.nn.replace import Replacement, replace
from netloupe.nn.topk import TopK, TopKMLP, swap_topk

__all__ = ["Replacement", "TopK", "TopKMLP", "replace", "swap_topk"]
