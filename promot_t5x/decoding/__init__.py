"""From a question to an answer."""

from promot_t5x.decoding.likelihood import Likelihood as Likelihood
from promot_t5x.decoding.likelihood import RankClassification as RankClassification
from promot_t5x.decoding.search import BeamSearch as BeamSearch
from promot_t5x.decoding.search import Greedy as Greedy
from promot_t5x.decoding.search import Sampling as Sampling
