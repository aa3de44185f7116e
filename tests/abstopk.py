"""The README's example of a new architecture, as its reader would write it."""

from sae_mlflow.sae.select import TopK
from sae_mlflow.sae.topk import TopKSAE


class AbsTopKSAE(TopKSAE):
    kind = "abstopk"  # its name in a stored config

    def codes(self, x):
        pre_acts, support = self._kept(x, TopK(self.k))  # or Above(bound), BatchTopK(k)
        return pre_acts.abs(), support
