"""A short form of `make chaos`: faults in whole runs lose nothing and change nothing in silence."""

import chaos
import pytest

pytestmark = pytest.mark.slow

TRIALS = 4


def test_faults_lose_nothing_and_change_nothing_in_silence(tmp_path):
    with chaos.Trials(tmp_path, "short", ("train", "convert")) as trials:
        results = [trials.run(number) for number in range(TRIALS)]
    print(chaos.table(results))
    assert not [result for result in results if result["outcome"] in chaos.UNWANTED]
    assert len({result["fault"] for result in results}) > 1
