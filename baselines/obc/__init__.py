"""OBC: optimal brain compression, post-training pruning and quantization with the exact layer-wise Hessian.

Paper: Frantar, Singh and Alistarh, arXiv:2208.11580. For every layer the mean squared error of its output on
calibration inputs is quadratic in each row of its weight, with the Hessian H = E[x x^T]. Weights go (ExactOBS) or are
rounded (OBQ) one by one, the cheapest first, while those that are left make up for it; Lemma 1 keeps H^-1
current. Several weights at once follow the group form of OBS. All equations stand in
``baselines.helpers.surgeon``. As in the paper's compound setting, the pruned model is quantized afterwards, its zeros
kept; batch normalisations get new statistics after pruning.

``structure=groups`` (the default, since structured methods are compared) removes the channels of GETA's dependency
groups: a group costs what its columns cost in the layers that read it, by the group form, relative to the mean square
of those layers' outputs; groups go one at a time, the cheapest in the whole network first, and costs are brought up
to date after each. ``structure=weights`` is the paper's ExactOBS with Algorithm 2: single weights, the same share in
every layer; the accountant's BOPs do not fall with zeros inside what is kept.

Differs: the paper has no channels as structure and distributes sparsity over layers by a dynamic program from AdaQuant;
here it follows from the costs (groups) or is uniform (weights). H is damped by 1 % of its mean diagonal. OBQ sees the
inputs that the already quantized layers before it give.
"""

from baselines.obc.method import Obc

__all__ = ["Obc"]
