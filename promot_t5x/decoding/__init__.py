"""From encoded questions to answers: greedy and beam search, sampling, and likelihoods.

`search` holds the methods (the values that gin files bind as DECODING) and their loops, `logits`
the filters of sampling, `decoder` the step that a search repeats and the decoding of a whole data
set, `likelihood` the scores of given answers. `batched` and `length_buckets` lay questions of any
length out for a few compiled programs. Read `search` first. Public are the five methods.
"""

from promot_t5x.decoding.likelihood import Likelihood as Likelihood
from promot_t5x.decoding.likelihood import RankClassification as RankClassification
from promot_t5x.decoding.search import BeamSearch as BeamSearch
from promot_t5x.decoding.search import Greedy as Greedy
from promot_t5x.decoding.search import Sampling as Sampling
